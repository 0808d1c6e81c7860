"""Look of the panel: JupyterLab's own colours, so that it follows the light and the dark theme."""

CSS = """<style>
.fedlab { --gap: 10px; gap: var(--gap); flex-flow: row wrap; align-items: flex-start; overflow: visible; padding: 2px; }
.fedlab .widget-html, .fedlab .widget-html-content { line-height: 1.35; margin: 0; }
.fedlab-controls { flex: 0 0 318px; gap: 1px; overflow: hidden; }
.fedlab-controls > .widget-vbox, .fedlab-controls .widget-inline-hbox { overflow: hidden; }
.fedlab-controls .widget-label { font-size: 12px; text-align: left; color: var(--jp-ui-font-color1); }
.fedlab-controls .widget-inline-hbox { height: 27px; margin: 0; }
.fedlab-controls .widget-readout { min-width: 40px; width: 46px; font-size: 12px; margin: 0; }
.fedlab-controls select, .fedlab-controls input { font-size: 12px; height: 24px; }
.fedlab-slot { height: 27px; overflow: hidden; }
.fedlab-slot > .widget-inline-hbox { flex: 1; }
.fedlab-slot > .widget-label { color: var(--jp-ui-font-color2); font-style: italic; padding-left: 102px; }
.fedlab-pair { overflow: hidden; gap: 6px; }
.fedlab-pair > * { flex: 1 1 0; min-width: 0; }
.fedlab-heading { font-size: 11px; font-weight: 600; letter-spacing: .07em; text-transform: uppercase; height: 20px;
  padding-top: 3px; color: var(--jp-ui-font-color2); border-bottom: 1px solid var(--jp-border-color2); }
.fedlab-main { flex: 1 1 520px; min-width: 0; gap: 5px; overflow: hidden; }
.fedlab-bar { gap: 5px; overflow: hidden; align-items: center; flex-flow: row wrap; }
.fedlab-bar .jupyter-button { margin: 0; width: auto; padding: 0 10px; border-radius: 3px; }
.fedlab-bar .jupyter-button:focus-visible, .fedlab .widget-toggle-button:focus-visible {
  outline: 2px solid var(--jp-brand-color1); outline-offset: -2px; }
.fedlab-bar .widget-inline-hbox { margin: 0; }
.fedlab-push { margin-left: auto !important; }
.fedlab-progress { width: 100%; height: 10px; margin: 0; }
.fedlab-line { height: 18px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 12px;
  color: var(--jp-ui-font-color1); font-variant-numeric: tabular-nums; }
.fedlab-status { height: 34px; overflow-y: auto; font-size: 12px; color: var(--jp-ui-font-color1); padding: 1px 8px;
  border-left: 3px solid var(--jp-border-color1); }
.fedlab-status.error { border-color: var(--jp-error-color1); }
.fedlab-status.warning { border-color: var(--jp-warn-color1); }
.fedlab-status.busy { border-color: var(--jp-brand-color1); }
.fedlab-status.done { border-color: var(--jp-success-color1); }
.fedlab-shown { height: 34px; overflow-y: auto; font-size: 12px; color: var(--jp-ui-font-color2); padding: 1px 8px;
  border-left: 3px solid transparent; }
.fedlab-shown.stale { color: var(--jp-ui-font-color1); border-color: var(--jp-warn-color1); }
.fedlab-shown b { color: var(--jp-ui-font-color1); }
.fedlab-stage { width: 100%; aspect-ratio: 780 / 415; overflow: hidden; background: white; border-radius: 4px;
  border: 1px solid var(--jp-border-color2); }
.fedlab-stage > img { width: 100%; height: 100%; object-fit: contain; margin: 0; }
.fedlab-stage.fedlab-dim > img { opacity: .4; filter: grayscale(.5); }
.fedlab-small { background: white; border-radius: 4px; border: 1px solid var(--jp-border-color2); margin: 4px 0 0 0;
  width: 100%; aspect-ratio: 310 / 155; object-fit: contain; }
.fedlab-text { width: 100%; height: 100%; overflow: auto; background: var(--jp-layout-color1); }
.fedlab-text pre { font-size: 11px; line-height: 1.3; margin: 6px 10px; color: var(--jp-ui-font-color1);
  white-space: pre-wrap; background: none; }
.fedlab-tabs .widget-toggle-button { width: auto; padding: 0 12px; margin: 0; border-radius: 3px; }
.fedlab-tabs, .fedlab-tabs .widget-toggle-buttons { margin: 0; }
.fedlab-round { width: 100%; margin: 0; }
.fedlab-round .widget-label { text-align: left; }
</style>"""


def status(kind: str, sign: str, text: str) -> str:
    """HTML of a status line: a sign and words, and a colour besides."""
    return f"<div class='fedlab-status {kind}' role='status' aria-live='polite'>{sign} {text}</div>"


def line(text: str) -> str:
    """HTML of one line of numbers."""
    return f"<div class='fedlab-line'>{text}</div>"
