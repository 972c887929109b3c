"""The style sheet of the evaluation's page: light and dark, readable in print, focus always visible."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --paper: #ffffff; --rule: #c9d0d6;
  --panel: #f4f6f8; --good: #0b6b3a; --bad: #a8201a; --c0: #1257a8; --c1: #a8500b; --c2: #0b6b3a; --c3: #7a2a92; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a3adb7; --paper: #15181b; --rule: #3d454c;
  --panel: #1f2428; --good: #5fd08e; --bad: #ff8f87; --c0: #7fb6ff; --c1: #ffb070; --c2: #5fd08e; --c3: #d99bf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
a { color: var(--c0); } p, li { max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: var(--paper); padding: .5rem; }
:focus-visible { outline: 3px solid var(--c0); outline-offset: 2px; }
.verdicts { list-style: none; padding: 0; } .verdicts li { margin: .4rem 0; padding: .5rem .75rem;
  background: var(--panel); border-left: .35rem solid var(--bad); } .verdicts .good { border-color: var(--good); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .25rem 0; } th, td { padding: .3rem .7rem; text-align: left;
  border-bottom: 1px solid var(--rule); vertical-align: top; white-space: nowrap; }
svg { display: block; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.rule { stroke: var(--rule); stroke-width: 1; } .span { stroke: var(--c0); stroke-width: 4; } .dot { fill: var(--c0); }
.asked { fill: var(--c0); } .leak { fill: var(--bad); } .still { fill: var(--soft); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 24rem; max-width: 34rem; }
.curve { fill: none; stroke-width: 2; } .band { opacity: .18; }
.line0 { stroke: var(--c0); } .line1 { stroke: var(--c1); } .line2 { stroke: var(--c2); } .line3 { stroke: var(--c3); }
.band.line0, .dot.line0 { fill: var(--c0); } .band.line1, .dot.line1 { fill: var(--c1); }
.band.line2, .dot.line2 { fill: var(--c2); } .band.line3, .dot.line3 { fill: var(--c3); } .band { stroke: none; }
svg text.line0, svg text.line1, svg text.line2, svg text.line3 { stroke: none; font-weight: 600; }
svg text.line0 { fill: var(--c0); } svg text.line1 { fill: var(--c1); }
svg text.line2 { fill: var(--c2); } svg text.line3 { fill: var(--c3); }
details { border: 1px solid var(--rule); border-radius: .25rem; margin: .5rem 0; padding: .5rem .75rem; }
summary { cursor: pointer; }
.beside { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
.beside h4 { margin: .5rem 0; font-size: .9rem; } .reply { white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--panel); padding: .5rem .75rem; margin: 0; font: inherit; }
@media print { .scroll { overflow: visible; } }
"""
