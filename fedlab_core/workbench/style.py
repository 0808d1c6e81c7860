"""Look of the panel: JupyterLab's own colours, so that it follows the light and the dark theme."""

CSS = """<style>
.fedlab { gap: 12px; flex-flow: row wrap; align-items: flex-start; overflow: visible; padding: 2px; }
.fedlab .widget-html, .fedlab .widget-html-content { line-height: 1.35; margin: 0; }
.fedlab .widget-inline-hbox, .fedlab .jupyter-button, .fedlab .widget-box { margin: 0; }
.fedlab .widget-label, .fedlab select, .fedlab input, .fedlab .jupyter-button, .fedlab .widget-readout {
  font-size: 12px; }
.fedlab .widget-label { text-align: left; color: var(--jp-ui-font-color1); }
.fedlab :is(button, select, input, .noUi-handle):focus-visible { outline: 2px solid var(--jp-brand-color1); }
.fedlab-controls { flex: 0 0 318px; overflow: hidden; }
.fedlab-controls .widget-vbox { overflow: hidden; }
.fedlab-controls .widget-inline-hbox, .fedlab-slot { height: 26px; align-items: center; overflow: hidden; }
.fedlab-controls .widget-inline-hbox .widget-label { height: 24px; line-height: 24px; }
.fedlab-controls select, .fedlab-controls input:not([type=checkbox]) { height: 23px !important; margin: 0; }
.fedlab-controls .widget-readout { min-width: 40px; width: 44px; margin: 0; height: 22px; line-height: 22px; }
.fedlab-slot > .widget-inline-hbox { flex: 1; }
.fedlab-slot > .fedlab-nothing { color: var(--jp-ui-font-color2); font-style: italic; padding-left: 106px; }
.fedlab-pair { overflow: hidden; gap: 8px; }
.fedlab-pair > .widget-dropdown { flex: 1 1 auto; }
.fedlab-pair > .widget-text { flex: 0 0 104px; }
.fedlab-pair > .widget-checkbox { flex: 1 1 0; min-width: 0; }
.fedlab-pair > .widget-checkbox label { display: flex; align-items: center; gap: 6px; }
.fedlab-pair > .widget-checkbox input { margin: 0; }
.fedlab-heading { font-size: 11px; font-weight: 600; letter-spacing: .07em; text-transform: uppercase; height: 17px;
  margin: 5px 0 3px 0; color: var(--jp-ui-font-color2); border-bottom: 1px solid var(--jp-border-color2); }
.fedlab-main { flex: 1 1 520px; min-width: 0; gap: 5px; overflow: hidden; }
.fedlab-bar { gap: 4px; overflow: hidden; align-items: center; flex-flow: row wrap; padding: 2px; }
.fedlab-bar .jupyter-button { width: auto; padding: 0 7px; border-radius: 3px; }
.fedlab-push { flex: 1 0 0; }
.fedlab-main > .fedlab-progress { width: 100%; height: 8px; margin: 0; }
.fedlab-progress > .progress { height: 8px; margin: 0; border-radius: 4px; background: var(--jp-layout-color3); }
.fedlab-progress > .progress > div { border-radius: 4px; }
.fedlab-line, .fedlab-status, .fedlab-shown { font-size: 12px; overflow: hidden auto; color: var(--jp-ui-font-color1);
  font-variant-numeric: tabular-nums; }
.fedlab-line { height: 17px; }
.fedlab-line.two { height: 34px; }
.fedlab-status, .fedlab-shown { height: 34px; padding: 0 8px; border-left: 3px solid var(--jp-border-color1); }
.fedlab-status.error { border-color: var(--jp-error-color1); }
.fedlab-status.warning, .fedlab-shown.stale { border-color: var(--jp-warn-color1); }
.fedlab-status.busy { border-color: var(--jp-brand-color1); }
.fedlab-status.done { border-color: var(--jp-success-color1); }
.fedlab-stage { width: 100%; aspect-ratio: 680 / 410; overflow: hidden; background: white; border-radius: 4px;
  border: 1px solid var(--jp-border-color2); box-sizing: border-box; }
.fedlab-stage > img { width: 100%; height: 100%; object-fit: contain; margin: 0; }
.fedlab-stage.fedlab-dim > img { opacity: .4; filter: grayscale(.5); }
.fedlab-small { background: white; border-radius: 4px; border: 1px solid var(--jp-border-color2); margin: 5px 0 0 0;
  width: 100%; aspect-ratio: 310 / 155; object-fit: contain; box-sizing: border-box; }
.fedlab-text { width: 100%; height: 100%; overflow: auto; background: var(--jp-layout-color1); }
.fedlab-text pre { font-size: 11px; line-height: 1.3; margin: 6px 10px; color: var(--jp-ui-font-color1);
  white-space: pre-wrap; background: none; }
.fedlab-tabs .widget-toggle-button { width: auto; padding: 0 12px; margin: 0 3px 0 0; border-radius: 3px; }
.fedlab-round { width: 100%; }
</style>"""


def status(kind: str, sign: str, text: str) -> str:
    """HTML of a status line: a sign and words, and a colour besides."""
    return f"<div class='fedlab-status {kind}' role='status' aria-live='polite'>{sign} {text}</div>"


def line(text: str, lines: int = 1) -> str:
    """HTML of one line of numbers, in a space of one or two."""
    return f"<div class='fedlab-line{' two' if lines == 2 else ''}'>{text}</div>"
