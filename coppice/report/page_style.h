#pragma once

#include <string_view>

namespace coppice::report {

/// The look of every report: one column, system fonts, light and dark by the reader's setting, charts that do not break
/// over printed pages. c0 to c6 are Okabe and Ito's palette, told apart with any colour vision; lighter on dark paper.
inline constexpr std::string_view kStyle = R"css(
:root { color-scheme: light dark;
  --ink: #1b2126; --soft: #5b6670; --line: #dde2e7; --paper: #ffffff; --shade: #f5f7f8; --accent: #0b6e4f;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8548f; --c4: #b27d00; --c5: #3f9fd8; --c6: #6b7680;
  --seq0: #f3f7fb; --seq1: #9cc3e0; --seq2: #2f7fb8; --seq3: #08305f;
  --div0: #1f5fa8; --div1: #9fc2e3; --div2: #f4f4f2; --div3: #f2b27c; --div4: #b34e00; }
@media (prefers-color-scheme: dark) { :root:not(.print) {
  --ink: #e4e8eb; --soft: #9aa5ae; --line: #333b43; --paper: #14181b; --shade: #1c2226; --accent: #5cc8a1;
  --c0: #56a9e0; --c1: #f0803c; --c2: #2fc296; --c3: #e08fbd; --c4: #e3b13c; --c5: #8fd0f5; --c6: #a3adb6;
  --seq0: #1a2026; --seq1: #1f4f7a; --seq2: #3f93cf; --seq3: #cfe8fb;
  --div0: #6fb1f2; --div1: #2c5a86; --div2: #22282d; --div3: #8a4f1c; --div4: #f79a50; } }
:root.print { color-scheme: light; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 1080px; padding: 40px 24px 72px; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0 0 .5em; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; font-weight: 650; letter-spacing: -.01em; margin: 2.6em 0 .7em; padding-top: .7em; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 600; margin: 0; }
main > h3 { margin: 1.6em 0 .4em; }
main > h2:first-child { border-top: 0; margin-top: .6em; }
p { margin: .6em 0; max-width: 74ch; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: 0 0 1.4em; padding-bottom: .8em; border-bottom: 2px solid var(--accent); font-size: .9rem; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 1em 0; }
.card { background: var(--shade); border-radius: 8px; padding: 12px 14px; }
.card .label { color: var(--soft); font-size: .82rem; }
.card .value { font-size: 1.45rem; font-weight: 650; letter-spacing: -.01em; font-variant-numeric: tabular-nums; line-height: 1.3; overflow-wrap: anywhere; }
.card .note { color: var(--soft); font-size: .82rem; line-height: 1.4; }
ul.findings { padding-left: 1.2em; max-width: 78ch; }
ul.findings li { margin: .35em 0; }
.table { overflow-x: auto; margin: 1.1em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.caption { color: var(--soft); font-size: .88rem; margin: -.4em 0 1.4em; max-width: 86ch; }
th, td { padding: .36em .9em; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); border-bottom: 1.5px solid var(--soft); }
td:first-child, th:first-child { padding-left: 2px; }
td.text { white-space: normal; min-width: 24ch; }
td.number, th.number { text-align: right; }
tbody tr:hover { background: var(--shade); }
pre { background: var(--shade); padding: 12px 14px; overflow-x: auto; font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; border-radius: 8px; }
details { margin: .5em 0; }
summary { cursor: pointer; color: var(--accent); }
figure { margin: 1.8em 0 2.2em; }
figure header { display: flex; flex-wrap: wrap; gap: .4em 1em; align-items: center; justify-content: space-between; margin-bottom: .2em; }
figcaption { color: var(--soft); font-size: .88rem; line-height: 1.5; max-width: 86ch; margin-top: .2em; }
.chart { width: 100%; min-height: 220px; }
.pick { display: flex; flex-wrap: wrap; align-items: center; gap: 2px; color: var(--soft); font-size: .82rem; }
.pick button { font: inherit; color: var(--soft); background: var(--shade); border: 0; padding: .3em .8em; cursor: pointer; margin-left: 2px; border-radius: 6px; }
.pick button[aria-pressed=true] { background: var(--accent); color: var(--paper); }
.pick select { font: inherit; color: var(--ink); background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: .25em .5em; margin-left: .5em; max-width: 100%; }
.pick :focus-visible { outline: 2px solid var(--c0); outline-offset: 1px; }
.tree { font-size: .92rem; overflow-x: auto; }
.tree ul { list-style: none; margin: 0; padding-left: 1.5em; }
.tree > ul { padding-left: 0; }
.tree li { position: relative; padding: .16em 0; }
.tree li li::before { content: ""; position: absolute; left: -1.05em; top: -.25em; width: .8em; height: 1.15em; border: solid var(--line); border-width: 0 0 1.5px 1.5px; border-bottom-left-radius: 5px; }
.tree li li:not(:last-child)::after { content: ""; position: absolute; left: -1.05em; top: 0; bottom: 0; border-left: 1.5px solid var(--line); }
.tree span { font-weight: 600; }
.tree small { color: var(--soft); font-size: .86rem; }
footer { margin-top: 4em; padding-top: 1em; border-top: 1px solid var(--line); color: var(--soft); font-size: .84rem; }
@media (max-width: 600px) {
  body { padding: 24px 14px 48px; font-size: 15px; }
  h1 { font-size: 1.5rem; }
  th, td { padding: .34em .6em; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; }
  .card { padding: 10px 11px; } .card .value { font-size: 1.2rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav, .pick, .modebar-container { display: none !important; }
  figure, .table, .card, li { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .card, pre { border: 1px solid var(--line); }
  .table { overflow: visible; } table { font-size: 8.5pt; } th, td { padding: .25em .6em .25em 0; }
  h2 { margin-top: 1.6em; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
)css";

}  // namespace coppice::report
