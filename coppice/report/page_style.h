#pragma once

#include <string_view>

namespace coppice::report {

/// The look of every report: one column, system fonts, light and dark by the reader's setting, charts that do not break
/// over printed pages.
inline constexpr std::string_view kStyle = R"css(
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c656e; --line: #d5dae0; --paper: #ffffff; --shade: #f4f6f8; --accent: #0b6e4f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa4ad; --line: #3a424a; --paper: #15181b; --shade: #1e2327; --accent: #5cc8a1; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 32px 20px 64px; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4em; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .5em; padding-bottom: .2em; border-bottom: 2px solid var(--accent); }
p { margin: .6em 0; max-width: 72ch; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; color: var(--soft); padding: .3em 0; }
th, td { padding: .32em .8em; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { background: var(--shade); font-weight: 600; }
td.number, th.number { text-align: right; }
pre { background: var(--shade); padding: 12px 14px; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
.chart { width: 100%; height: 420px; margin: 1em 0; }
footer { margin-top: 3em; color: var(--soft); font-size: .85rem; }
@media print { body { max-width: none; padding: 0; } .chart, .table { break-inside: avoid; } h2 { break-after: avoid; } }
)css";

/// Draws each chart and follows the reader's colours.
inline constexpr std::string_view kScript = R"js(
const charts = [];
function themed(layout) {
  const css = getComputedStyle(document.documentElement);
  const ink = css.getPropertyValue('--ink').trim(), line = css.getPropertyValue('--line').trim();
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true};
  return Object.assign({}, layout, {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: {color: ink, size: 13},
    xaxis: Object.assign({}, axis, layout.xaxis), yaxis: Object.assign({}, axis, layout.yaxis),
    margin: {l: 64, r: 24, t: 52, b: 56}, hovermode: layout.hovermode || 'closest',
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: line, activecolor: ink},
  });
}
function draw(id, data, layout) {
  charts.push([id, layout]);
  Plotly.newPlot(id, data, themed(layout), {responsive: true, displaylogo: false});
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const [id, layout] of charts) Plotly.relayout(id, themed(layout));
});
)js";

}  // namespace coppice::report
