#pragma once

#include <string_view>

namespace coppice::report {

/// Draws each chart in the reader's colours, one after the other so that the page stays usable; again when the colours
/// change, a reader picks another view, or the page is printed.
inline constexpr std::string_view kScript = R"js(
const charts = [];
const narrow = () => innerWidth < 620;
function theme() {
  const css = getComputedStyle(document.documentElement), get = name => css.getPropertyValue('--' + name).trim();
  const colours = {ink: get('ink'), soft: get('soft'), line: get('line'), paper: get('paper')};
  for (let i = 0; i < 7; ++i) { colours['c' + i] = get('c' + i); colours['c' + i + '-band'] = get('c' + i) + '2e'; }
  const scale = (name, n) => Array.from({length: n}, (_, i) => [i / (n - 1), get(name + i)]);
  colours.sequential = scale('seq', 4);
  for (let i = 0; i < 5; ++i) colours['div' + i] = get('div' + i);
  return colours;
}
function coloured(value, colours) {
  if (typeof value === 'string') return value[0] === '@' ? colours[value.slice(1)] ?? value : value;
  if (Array.isArray(value)) return value.length > 2 && typeof value[0] === 'number' ? value : value.map(v => coloured(v, colours));
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, colours)]));
}
function laidOut(view, colours, width) {
  const small = narrow() && !width, layout = coloured(view.layout, colours);
  const axis = {gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true,
                zeroline: false, exponentformat: 'SI', separatethousands: true, title: {standoff: 8}};
  const merged = own => ({...axis, ...own, ...(small && own.nticks ? {nticks: 8} : {}), title: {...axis.title, ...own.title, font: {size: small ? 12 : 13, color: colours.soft}}});
  const rows = view.data.filter(t => t.showlegend && t.name).length;
  const legend = small ? {orientation: 'h', y: -0.24, yanchor: 'top', x: 0} : {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0};
  if (!small && layout.annotations) legend.y = 1.09;
  return {...layout, height: layout.height ?? (small ? 320 + (layout.showlegend ? 22 * rows : 0) : 400), width,
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: colours.ink, size: small ? 11 : 13, family: getComputedStyle(document.body).fontFamily},
    xaxis: merged(layout.xaxis), yaxis: merged(layout.yaxis), legend: {...legend, font: {size: small ? 11 : 13}},
    margin: {l: small ? 44 : 60, r: 16, t: layout.annotations ? 34 : 14, b: 46, pad: 2, ...(small ? {} : layout.margin)},
    dragmode: narrow() ? false : 'zoom', hoverlabel: {bgcolor: colours.paper, bordercolor: colours.line, font: {color: colours.ink, size: 12}},
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: colours.line, activecolor: colours.ink}};
}
function draw(chart, width) {
  const colours = theme(), view = chart.views[chart.shown], small = narrow();
  const data = coloured(view.data, colours);
  for (const trace of data) if (trace.colorbar && small) trace.colorbar = {...trace.colorbar, orientation: 'h', y: -84 / ((view.layout.height ?? 320) - 110), yanchor: 'top', thickness: 8, title: {...trace.colorbar.title, side: 'top'}};
  return Plotly.react(chart.id, data, laidOut(view, colours, width), {responsive: !width, displaylogo: false, displayModeBar: small ? false : 'hover',
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'toggleSpikelines']});
}
function addPicker(chart) {
  const place = document.getElementById(chart.id + '-pick');
  if (!place) return;
  const show = i => { chart.shown = i; const heading = place.parentNode.querySelector('h3'); heading.textContent = chart.views[i].title; draw(chart); };
  if (chart.views.length > 5) {
    const select = document.createElement('select');
    select.setAttribute('aria-label', place.textContent || 'view');
    chart.views.forEach((view, i) => select.add(new Option(view.label, i)));
    select.onchange = () => show(Number(select.value));
    place.append(select);
    return;
  }
  const buttons = chart.views.map((view, i) => {
    const button = document.createElement('button');
    button.textContent = view.label;
    button.setAttribute('aria-pressed', i === 0);
    button.onclick = () => { buttons.forEach((b, j) => b.setAttribute('aria-pressed', i === j)); show(i); };
    place.append(button);
    return button;
  });
}
function add(id, views) { charts.push({id, views, shown: 0}); }
function drawAll(next = 0) {
  if (next === 0) charts.forEach(addPicker);
  if (next >= charts.length) { document.documentElement.dataset.drawn = charts.length; return; }
  draw(charts[next]);
  setTimeout(() => drawAll(next + 1), 0);
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => charts.forEach(chart => draw(chart)));
let wasNarrow = narrow();
addEventListener('resize', () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); charts.forEach(chart => draw(chart)); } });
addEventListener('beforeprint', () => {
  document.documentElement.classList.add('print');
  document.querySelectorAll('details').forEach(d => { d.dataset.was = d.open; d.open = true; });
  charts.forEach(chart => draw(chart, 680));
});
addEventListener('afterprint', () => {
  document.documentElement.classList.remove('print');
  document.querySelectorAll('details').forEach(d => { d.open = d.dataset.was === 'true'; });
  charts.forEach(chart => draw(chart));
});
)js";

}  // namespace coppice::report
