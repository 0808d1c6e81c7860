/* Plays a replay: pictures that were recorded as plain data, drawn as SVG. No server, nothing from elsewhere.

   A div of the class fedlab-player with data-replay="NAME" fetches replays/NAME.js beside this file; one with a script
   of the type application/json in it holds its data itself. */
"use strict";
(() => {
    const base = document.currentScript && document.currentScript.src.replace(/[^/]*$/, "");
    const waiting = {};
    const sample = document.createElement("div");
    sample.innerHTML = "<svg></svg>";
    const SVG = sample.firstChild.namespaceURI;
    const STYLE = `
.fedlab-player { --ink: #1a1a1a; --paper: #fff; --pale: #8886; margin: 1em 0; padding: 10px 12px; border: 1px solid var(--pale);
  border-radius: 6px; font: 14px/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
.fedlab-player.dark { --ink: #e6e6e6; --paper: #17191c; }
.fedlab-player h4 { margin: 0; font-size: 15px; } .fedlab-player p { margin: 4px 0; }
.fedlab-player .settings { font-size: 12.5px; opacity: .85; }
.fedlab-player .bar { display: flex; gap: 8px; align-items: center; position: sticky; top: 0; background: var(--paper); padding: 4px 0; }
@media (max-width: 63em) { .fedlab-player .bar { top: var(--header-height, 0); } }
.fedlab-player .bar input { flex: 1; min-width: 60px; height: 32px; margin: 0; touch-action: pan-y; }
.fedlab-player button { font: inherit; min-width: 44px; min-height: 36px; border: 1px solid var(--pale); border-radius: 4px;
  background: none; color: inherit; cursor: pointer; }
.fedlab-player .at { min-width: 5.5em; text-align: right; font-variant-numeric: tabular-nums; }
.fedlab-player .panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: 10px; }
.fedlab-player svg { width: 100%; max-width: 520px; touch-action: pan-y; }
.fedlab-player .said { border-left: 3px solid #0072B2; padding-left: 8px; min-height: 2.8em; }
.fedlab-player .key { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; }
.fedlab-player .key i { display: inline-block; width: 22px; margin-right: 5px; vertical-align: middle; }
.fedlab-player :focus-visible { outline: 2px solid #0072B2; outline-offset: 1px; }`;

    function node(name, attributes, parent) {
        const made = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        if (parent) parent.append(made);
        return made;
    }
    function html(name, className, parent, text) {
        const made = document.createElement(name);
        if (className) made.className = className;
        if (text !== undefined) made.textContent = text;
        parent.append(made);
        return made;
    }
    const grey = name => /^#(..)\1\1$/.test(name) && `color-mix(in srgb, var(--paper) ${parseInt(name.slice(1, 3), 16) / 2.55}%, var(--ink))`;
    const color = name => name === "ink" ? "var(--ink)" : name === "paper" ? "var(--paper)" : grey(name) || name;

    class Panel {
        constructor(data, parent) {
            this.data = data;
            const look = data.looks[0];
            this.width = 300;
            this.height = Math.round(300 * look.shape);
            const long = Math.max(0, ...data.looks.flatMap(l => l.yticks.map(t => t[1].length)));
            const wide = Math.max(0, ...data.looks.flatMap(l => l.xticks.map(t => t[1].length)));
            // Room on the left for long words that end slanting under their ticks.
            const lean = wide > 8 ? Math.max(...data.looks.flatMap(l => l.xticks.map(t => 4.8 * t[1].length - t[0] * this.width / 1000))) : 0;
            this.left = look.bare ? 6 : Math.max((data.looks[0].y ? 24 : 12) + 6 * Math.min(long, 14), lean);
            this.below = look.bare ? 8 : wide > 8 ? 18 + 2.6 * wide : 38;
            // Slanting words that stand closer than their height are turned more, until they are apart.
            const gap = Math.min(...data.frames.map(refs => {
                const at = refs.map(r => data.items[Array.isArray(r) ? r[0] : r]).filter(i => i.r).map(i => i.p[0]).sort((a, b) => a - b);
                return Math.min(...at.slice(1).map((x, i) => (x - at[i]) * this.width / 1000).filter(d => d > 0));
            }));
            this.turn = r => Math.max(r, Math.asin(Math.min(1, 11 / gap)) * 180 / Math.PI);
            // Room above for words that stand slanting at the top.
            const beyond = i => i.r ? 6 * i.s.length * Math.sin(this.turn(i.r) * Math.PI / 180) + (i.p[1] / 1000 - 1) * this.height : 0;
            this.top = 22 + Math.max(0, ...data.items.map(beyond));
            // Room on the right for words that begin near the edge.
            const over = i => i.t === "text" && !i.r && i.h === "start" ? (i.p[0] / 1000 - 1) * this.width + 5.5 * Math.max(...i.s.split("\n").map(s => s.length)) : 0;
            this.right = Math.min(90, Math.max(10, ...data.items.map(over)));
            this.svg = node("svg", {role: "img"});
            parent.append(this.svg);
            this.shown = -1;
        }
        x(v) { return this.left + v * this.width / 1000; }
        y(v) { return this.top + this.height - v * this.height / 1000; }
        draw(frame) {
            const {data, svg} = this, look = data.looks[Math.min(frame, data.looks.length - 1)];
            svg.replaceChildren();
            svg.setAttribute("viewBox", `0 0 ${this.left + this.width + this.right} ${this.top + this.height + this.below}`);
            svg.setAttribute("aria-label", `${look.title || look.y}, frame ${frame + 1}`);
            const text = (x, y, words, more) => {
                const t = node("text", {x, y, fill: "var(--ink)", "font-size": 11, ...more}, svg);
                words.split("\n").forEach((line, i) => node("tspan", {x, dy: i ? "1.15em" : 0}, t).textContent = line);
                return t;
            };
            text(this.left + this.width / 2, 13, look.title, {"text-anchor": "middle", "font-size": 12});
            if (!look.bare) this.frame(look, text);
            const id = `clip${Panel.count = (Panel.count || 0) + 1}`;
            const clip = node("clipPath", {id}, svg);
            node("rect", {x: this.left - 4, y: this.top - 4, width: this.width + 8, height: this.height + 8}, clip);
            const inside = node("g", look.bare ? {} : {"clip-path": `url(#${id})`}, svg);
            for (const ref of data.frames[frame]) {
                const [number, count] = Array.isArray(ref) ? ref : [ref, undefined];
                this.item(data.items[number], count, inside, text);
            }
        }
        hatch(kind) {  // white on the colour, as the second and third eight classes are drawn
            const id = `hatch${kind[0] === "/" ? 1 : 2}`;
            if (!document.getElementById(id)) {
                const holder = node("svg", {width: 0, height: 0, style: "position:absolute"}, document.body);
                const turned = id === "hatch1" ? {patternTransform: "rotate(45)"} : {};
                const made = node("pattern", {id, width: 5, height: 5, patternUnits: "userSpaceOnUse", ...turned}, holder);
                node("rect", {width: 2, height: id === "hatch1" ? 5 : 2, fill: "#fff"}, made);
            }
            return id;
        }
        frame(look, text) {
            const {svg} = this, bottom = this.y(0);
            for (const [place, words] of look.xticks) {
                node("line", {x1: this.x(place), x2: this.x(place), y1: bottom, y2: bottom + 4, stroke: "var(--ink)"}, svg);
                const turned = look.xticks.some(t => t[1].length > 8) ? {transform: `rotate(-25 ${this.x(place)} ${bottom + 15})`, "text-anchor": "end"} : {"text-anchor": "middle"};
                text(this.x(place), bottom + 15, words, {...turned, "font-size": 10});
            }
            for (const [place, words] of look.yticks) {
                node("line", {x1: this.left - 4, x2: this.left, y1: this.y(place), y2: this.y(place), stroke: "var(--ink)"}, svg);
                text(this.left - 6, this.y(place) + 3.5, words.slice(0, 16), {"text-anchor": "end", "font-size": 10});
            }
            node("path", {d: `M${this.left} ${this.top}V${bottom}H${this.left + this.width}`, fill: "none", stroke: "var(--ink)"}, svg);
            text(this.left + this.width / 2, bottom + 32, look.x, {"text-anchor": "middle"});
            const middle = this.top + this.height / 2;
            text(10, middle, look.y, {"text-anchor": "middle", transform: `rotate(-90 10 ${middle})`});
        }
        item(item, count, inside, text) {
            const p = item.p, stroke = color(item.c), points = [];
            if (item.t === "line") {
                for (let i = 0; i < (count === undefined ? p.length / 2 : count); i++) points.push([this.x(p[2 * i]), this.y(p[2 * i + 1])]);
                if (!item.n) node("polyline", {points: points.join(" "), fill: "none", stroke, "stroke-width": Math.max(1, item.w), opacity: item.a, "stroke-dasharray": item.d ? "6 3" : "none"}, inside);
                if (item.m || item.n) for (const [cx, cy] of points) node("circle", {cx, cy, r: item.o ? 6 : item.n ? 4 : 2.4, fill: item.o ? "none" : stroke, stroke: item.o ? stroke : "none", opacity: item.a}, inside);
            } else if (item.t === "shape") {
                const d = p.map(o => "M" + Array.from({length: o.length / 2}, (_, i) => `${this.x(o[2 * i]).toFixed(1)} ${this.y(o[2 * i + 1]).toFixed(1)}`).join("L") + "Z").join("");
                node("path", {d, fill: item.f ? color(item.f) : "none", "fill-opacity": item.a === undefined ? 1 : item.a, stroke: item.c ? stroke : "none"}, inside);
                if (item.x) node("path", {d, fill: `url(#${this.hatch(item.x)})`}, inside);
            } else if (item.t === "dot") {
                node("circle", {cx: this.x(p[0]), cy: this.y(p[1]), r: 3, fill: stroke, opacity: item.a}, inside);
            } else if (item.t === "arrow") {
                const [x1, y1, x2, y2] = [this.x(p[0]), this.y(p[1]), this.x(p[2]), this.y(p[3])];
                const long = Math.hypot(x2 - x1, y2 - y1), size = Math.min(long, 5 + 1.6 * item.w), [u, v] = long ? [(x2 - x1) / long, (y2 - y1) / long] : [0, 0];
                const [bx, by] = [x2 - u * size, y2 - v * size];
                node("line", {x1, y1, x2: bx, y2: by, stroke, "stroke-width": item.w}, inside);
                node("path", {d: `M${x2} ${y2}L${bx - v * size * 0.4} ${by + u * size * 0.4}L${bx + v * size * 0.4} ${by - u * size * 0.4}Z`, fill: stroke}, inside);
            } else if (item.t === "text") {
                const drop = item.v === "top" ? 10 : item.v === "bottom" ? -3 : item.v === "baseline" ? 0 : 3.5 - 6 * (item.s.split("\n").length - 1);
                const [x, y] = [this.x(p[0]), this.y(p[1]) + (item.r ? -3 : drop)], turned = item.r ? {transform: `rotate(${-this.turn(item.r)} ${x} ${y})`} : {};
                const halo = item.c === "ink" ? {stroke: "var(--paper)", "stroke-width": 3, "stroke-linejoin": "round", "paint-order": "stroke"} : {}; // over any shape
                text(x, y, item.s, {"text-anchor": item.h, "font-size": 9.5, fill: stroke, ...halo, ...turned});
            }
        }
    }

    function key(data, parent) {
        const seen = new Map();
        for (const panel of data.panels) for (const item of panel.items) if (item.l && !seen.has(item.l)) seen.set(item.l, item);
        if (!seen.size) return;
        const list = html("p", "key", parent);
        for (const [label, item] of seen) {
            const entry = html("span", "", list), mark = html("i", "", entry);
            mark.style.borderTop = `${item.t === "line" ? 3 : 11}px ${item.d ? "dashed" : "solid"} ${color(item.c || item.f)}`;
            if (item.x) mark.style.borderTopStyle = "double";
            mark.style.opacity = item.a === undefined ? 1 : item.a;
            if (item.n) Object.assign(mark.style, {width: 0, border: `5px solid ${color(item.c)}`, borderRadius: "50%"});
            entry.append(label);
        }
    }

    function play(root, data) {
        root.replaceChildren();
        html("h4", "", root, data.title);
        if (data.settings) html("p", "settings", root, data.settings);
        const last = data.steps.length - 1, bar = html("div", "bar", root);
        const button = html("button", "", bar, "▶"), range = html("input", "", bar), at = html("span", "at", bar);
        button.type = "button";
        button.setAttribute("aria-label", "play");
        Object.assign(range, {type: "range", min: 0, max: last, value: last});
        range.setAttribute("aria-label", `${data.title}: round`);
        const panels = html("div", "panels", root), drawn = data.panels.map(panel => new Panel(panel, panels));
        key(data, root);
        const said = html("p", "said", root);
        let timer = null;
        const show = () => {
            const frame = Number(range.value);
            drawn.forEach(panel => panel.draw(frame));
            at.textContent = data.steps[frame];
            range.setAttribute("aria-valuetext", data.steps[frame]);
            said.textContent = data.said[frame];
        };
        const stop = () => {
            clearInterval(timer);
            timer = null;
            button.textContent = "▶";
            button.setAttribute("aria-label", "play");
        };
        button.addEventListener("click", () => {
            if (timer) return stop();
            if (Number(range.value) === last) range.value = 0;
            button.textContent = "❚❚";
            button.setAttribute("aria-label", "pause");
            show();
            timer = setInterval(() => {
                range.value = Number(range.value) + 1;
                show();
                if (Number(range.value) === last) stop();
            }, Math.max(180, 6000 / (last + 1)));
        });
        range.addEventListener("input", () => { stop(); show(); });
        const night = () => {
            const chosen = document.body.dataset.theme, dark = matchMedia("(prefers-color-scheme: dark)").matches;
            root.classList.toggle("dark", chosen === "dark" || (chosen !== "light" && dark));
        };
        night();
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", night);
        new MutationObserver(night).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]});
        show();
    }

    function start() {
        const roots = document.querySelectorAll(".fedlab-player");
        if (!roots.length) return;
        html("style", "", document.head, STYLE);
        for (const root of roots) {
            const own = root.querySelector("script");
            if (own) { play(root, JSON.parse(own.textContent)); continue; }
            const name = root.dataset.replay, script = document.createElement("script");
            (waiting[name] = waiting[name] || []).push(root);
            script.src = `${base}replays/${name}.js`;
            document.head.append(script);
        }
    }
    window.fedlabReplay = (name, data) => (waiting[name] || []).splice(0).forEach(root => play(root, data));
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
})();
