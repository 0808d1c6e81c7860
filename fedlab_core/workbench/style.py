"""Look of the panels: JupyterLab's own colours, so that they follow the light and the dark theme."""

import html

ROOM = 90  # characters that fit into the two lines of a status box with a way out beside it
CSS = """<style>
.fedlab { overflow: visible; padding: 2px; }
.fedlab .widget-html, .fedlab .widget-html-content { line-height: 1.35; margin: 0; }
.fedlab .widget-inline-hbox, .fedlab .jupyter-button, .fedlab .widget-box { margin: 0; }
.fedlab .widget-label, .fedlab select, .fedlab input, .fedlab .jupyter-button, .fedlab .widget-readout {
  font-size: 12px; }
.fedlab .widget-label { text-align: left; color: var(--jp-ui-font-color1); }
.fedlab :is(button, select, input, .noUi-handle):focus-visible { outline: 2px solid var(--jp-brand-color1); }
.fedlab abbr { text-decoration: underline dotted; text-underline-offset: 2px; cursor: help; }
.fedlab-bench { container-type: inline-size; }
.fedlab-halves { gap: 10px; flex-flow: row nowrap; align-items: flex-start; overflow: visible; }
.fedlab-controls { flex: 0 0 236px; order: -1; overflow: hidden auto; max-height: 556px; padding-right: 4px;
  scrollbar-width: thin; }
.fedlab-controls .widget-vbox { overflow: hidden; flex-shrink: 0; }
.fedlab-controls .widget-inline-hbox { height: 25px; align-items: center; overflow: hidden; flex-shrink: 0; }
.fedlab-controls .widget-html { height: auto; }
.fedlab-controls .widget-inline-hbox .widget-label { height: 24px; line-height: 24px; flex-shrink: 0; }
.fedlab-controls select, .fedlab-controls input { height: 23px !important; margin: 0; min-width: 0; }
.fedlab-controls .widget-readout { min-width: 34px; width: 38px; margin: 0; height: 22px; line-height: 22px; }
.fedlab-pair { overflow: hidden; gap: 6px; }
.fedlab-pair > .fedlab-switch { flex: 1 1 0; min-width: 0; }
.fedlab-controls .fedlab-switch { height: 23px; line-height: 23px; margin: 1px 0; padding: 0 6px; border-radius: 3px; }
.fedlab-controls .jupyter-button { width: auto; flex-shrink: 0; }
.fedlab-more { margin: 6px 0 2px 0 !important; }
.fedlab-heading { font-size: 11px; font-weight: 600; letter-spacing: .07em; text-transform: uppercase; height: 17px;
  margin: 5px 0 3px 0; color: var(--jp-ui-font-color2); border-bottom: 1px solid var(--jp-border-color2); }
.fedlab-note { font-size: 11px; line-height: 1.3; color: var(--jp-ui-font-color2); overflow-wrap: anywhere; }
.fedlab-main { flex: 1 1 0; min-width: 0; gap: 4px; overflow: visible; }
.fedlab-bar { gap: 4px; overflow: visible; align-items: center; flex-flow: row wrap; }
.fedlab-bar .jupyter-button { width: auto; padding: 0 6px; border-radius: 3px; height: 26px; line-height: 26px; }
.fedlab-bar select, .fedlab-bar input { height: 26px !important; }
.fedlab-push { flex: 1 0 0; }
.fedlab-main > .fedlab-progress, .fedlab-lab > .fedlab-progress { width: 100%; height: 6px; margin: 0; flex-shrink: 0; }
.fedlab-progress > .progress { height: 6px; margin: 0; border-radius: 3px; background: var(--jp-layout-color3); }
.fedlab-progress > .progress > div { border-radius: 3px; }
.fedlab-line, .fedlab-status, .fedlab-shown { font-size: 12px; overflow: hidden auto; color: var(--jp-ui-font-color1);
  font-variant-numeric: tabular-nums; }
.fedlab-line { height: 17px; }
.fedlab-line span { white-space: nowrap; }
.fedlab-line.two { height: 34px; }
.fedlab-status, .fedlab-shown { min-height: 17px; max-height: 34px; padding: 0 8px;
  border-left: 3px solid var(--jp-border-color1); }
.fedlab-shown { height: 34px; }
.fedlab-status { scrollbar-color: auto; }
.fedlab-status::-webkit-scrollbar { width: 10px; background: var(--jp-layout-color3); }
.fedlab-status::-webkit-scrollbar-thumb { background: var(--jp-ui-font-color2); border-radius: 5px; }
.fedlab-says { align-items: center; gap: 6px; height: 34px; overflow: hidden; flex-shrink: 0; }
.fedlab-says > .widget-html { flex: 1 1 0; min-width: 0; }
.fedlab-says > .jupyter-button { width: auto; max-width: 60%; flex: 0 1 auto; padding: 0 8px; height: 26px;
  line-height: 26px; overflow: hidden; text-overflow: ellipsis; border-radius: 3px; }
.fedlab-status.error { border-color: var(--jp-error-color1); }
.fedlab-status.warning, .fedlab-shown.stale { border-color: var(--jp-warn-color1); }
.fedlab-status.busy { border-color: var(--jp-brand-color1); }
.fedlab-status.done { border-color: var(--jp-success-color1); }
.fedlab-status a { color: var(--jp-content-link-color); text-decoration: underline; }
.fedlab-stage { width: 100%; aspect-ratio: 740 / 390; overflow: hidden; background: white; border-radius: 4px;
  border: 1px solid var(--jp-border-color2); box-sizing: border-box; flex-shrink: 0; }
.fedlab-stage > img { width: 100%; height: 100%; object-fit: contain; margin: 0; }
.fedlab-stage.fedlab-dim > img { opacity: .4; }
.fedlab-small { background: white; border-radius: 4px; border: 1px solid var(--jp-border-color2); margin: 5px 0 0 0;
  width: 100%; aspect-ratio: 310 / 155; object-fit: contain; box-sizing: border-box; flex-shrink: 0; }
.fedlab-text { width: 100%; height: 100%; overflow: auto; background: var(--jp-layout-color1); }
.fedlab-text pre { font-size: 11px; line-height: 1.3; margin: 6px 10px; color: var(--jp-ui-font-color1);
  white-space: pre-wrap; background: none; user-select: text; }
.fedlab-look { flex-flow: row wrap; gap: 10px; align-items: flex-start; }
.fedlab-look.widget-vbox { flex-flow: column nowrap; }
.fedlab-look .fedlab-knobs { flex: 0 1 310px; min-width: 0; }
.fedlab-look.widget-vbox .fedlab-knobs { flex: 0 0 auto; }
.fedlab-look .fedlab-words { font-size: 13px; line-height: 1.4; max-width: 60em; white-space: normal; }
img.fedlab-picture { max-width: 100%; height: auto; background: white; }
.fedlab-tabs { height: auto !important; }
.fedlab-tabs .widget-toggle-button { width: auto; padding: 0 9px; margin: 0 2px 0 0; border-radius: 3px;
  height: 26px; line-height: 26px; }
.fedlab-times { flex-flow: row nowrap !important; }
.fedlab-times > .widget-slider { flex: 1 1 0; min-width: 120px; }
.fedlab-gone { visibility: hidden; height: 0; overflow: hidden; font-size: 13px; font-weight: 600;
  color: var(--jp-ui-inverse-font-color0, white); background: var(--jp-error-color1); border-radius: 3px;
  animation: fedlab-gone 1s 14s forwards; }
@keyframes fedlab-gone { to { visibility: visible; height: auto; padding: 4px 8px; } }
body[data-jp-theme-light=false] :is(.fedlab-stage > img, img.fedlab-small, .fedlab-picture):not(.fedlab-colours) {
  filter: invert(.9) hue-rotate(180deg); }
body[data-jp-theme-light=false] .fedlab-stage:not(:has(> .fedlab-colours)) { background: #191919; }
body[data-jp-theme-light=false] .fedlab :is(select, input) { color-scheme: dark; }
.fedlab select { appearance: auto !important; background-image: none !important; padding-right: 2px !important;
  text-overflow: ellipsis; }
@container (max-width: 640px) {
  .fedlab-halves { flex-flow: column nowrap; align-items: stretch; }
  .fedlab-controls { order: 1; flex: 0 0 auto; max-height: none; width: 100%; }
  .fedlab-main { flex: 0 0 auto; width: 100%; }
  .fedlab-line.two, .fedlab-shown { height: auto; min-height: 34px; max-height: none; }
  .fedlab-line span { white-space: normal; }
}
@container (max-width: 420px) {
  .fedlab-stage { aspect-ratio: auto; height: 292px; overflow: auto hidden; }
  .fedlab-stage > img { width: 532px; max-width: none; height: 280px; }
  .fedlab-bar .jupyter-button { padding: 0 6px; }
  .fedlab-times { flex-flow: row wrap !important; }
  .fedlab-says { height: auto; flex-flow: row wrap; max-height: 102px; }
  .fedlab-status { max-height: 68px; }
  .fedlab-says > .jupyter-button { max-width: 100%; }
}
</style>"""
LAB_CSS = """<style>
.fedlab-lab { gap: 6px; max-width: 1000px; overflow: visible; container-type: inline-size; }
.fedlab-lab .fedlab-knobs { flex-flow: row wrap; gap: 4px 14px; overflow: visible; }
.fedlab-lab .fedlab-knobs > * { width: 230px; margin: 0; }
.fedlab-lab .fedlab-bar { gap: 6px; }
.fedlab-lab .fedlab-bar .jupyter-button { padding: 0 10px; }
.fedlab-lab .fedlab-frame { overflow: auto hidden; border: 1px solid var(--jp-border-color2); border-radius: 4px; }
.fedlab-frame > img { width: 100%; min-width: 640px; height: auto; background: white; margin: 0; }
body[data-jp-theme-light=false] .fedlab-frame > img:not(.fedlab-colours) { filter: invert(.9) hue-rotate(180deg); }
@container (max-width: 480px) { .fedlab-lab .fedlab-knobs > * { width: 100%; } }
@container (max-width: 600px) {
  .fedlab-frame + .widget-html { flex-wrap: wrap; }
  .fedlab-frame + .widget-html::before { content: "⟷ push the picture sideways to see all of it"; flex: 1 0 100%;
    font-size: 11px; color: var(--jp-ui-font-color2); }
}
@media (max-width: 640px) {
  :is(.jp-RenderedImage, .jp-RenderedMarkdown p) > img:not(.jupyter-widgets) { max-width: none !important; zoom: .8; }
  .jp-RenderedMarkdown p:has(> img) { overflow-x: auto; }
}
.jp-RenderedText pre { word-break: normal !important; overflow-wrap: anywhere; }
.fedlab-lab p, .fedlab-lab li { margin: 0; font-size: 13px; line-height: 1.4; color: var(--jp-ui-font-color1); }
.fedlab-lab .fedlab-sentence { font-size: 14px; padding: 2px 8px; border-left: 3px solid var(--jp-brand-color1); }
.fedlab-lab ul { margin: 2px 0 0 18px; padding: 0; }
.fedlab-lab pre { user-select: all; font-size: 12px; line-height: 1.35; margin: 0; padding: 6px 8px; overflow: auto;
  color: var(--jp-ui-font-color1); background: var(--jp-layout-color2); }
</style>"""


def status(kind: str, sign: str, text: str, whole: str = "") -> str:
    """HTML of a status line: a sign and words, and a colour besides.

    Args:
        whole: the words alone; where they may be more than the box shows, it can be scrolled by keys as well, and all
            of them are one hover away.
    """
    more = f" tabindex='0' title='{html.escape(whole, quote=True)}'" if len(whole) > ROOM else ""
    return f"<div class='fedlab-status {kind}' role='status' aria-live='polite'{more}>{sign} {text}</div>"


def line(text: str, lines: int = 1) -> str:
    """HTML of one line of numbers, in a space of one or two."""
    return f"<div class='fedlab-line{' two' if lines == 2 else ''}'>{text}</div>"
