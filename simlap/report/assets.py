"""Style sheet and script of the HTML page. Kept as strings so that the page needs no other file."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--page:#fff;--text:#1a1d21;--soft:#5b636d;--line:#e3e6ea;--panel:#f6f7f9;--accent:#0b62a8;
--good:#0b7a53;--good-bg:#e3f4ec;--bad:#b3391b;--bad-bg:#fbe9e4;--warn:#8a5a00;--warn-bg:#fcf2da;--busy:#0b62a8;
--busy-bg:#e4f0fa;--mute:#5b636d;--mute-bg:#eceef1}
@media screen and (prefers-color-scheme:dark){:root{--page:#14171b;--text:#e7e9ec;--soft:#a0a8b3;--line:#2c323a;--panel:#1c2026;
--accent:#7ab8ee;--good:#63cfa1;--good-bg:#15332a;--bad:#f1937a;--bad-bg:#3b201a;--warn:#e8bd66;--warn-bg:#352a13;
--busy:#7ab8ee;--busy-bg:#172b3d;--mute:#a0a8b3;--mute-bg:#262b32}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:3rem 1.5rem 5rem}
header{margin-bottom:2.25rem}
.kicker{margin:0;color:var(--soft);font-size:.8rem;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.15rem 0 .5rem;font-size:2.1rem;line-height:1.2;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{margin:3.25rem 0 .35rem;font-size:1.3rem;line-height:1.3;letter-spacing:-.01em}
h3{margin:1.5rem 0 .25rem;font-size:.95rem}
p{margin:.4rem 0}
.facts{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:0;padding:0;list-style:none;color:var(--soft);font-size:.92rem}
.facts b{color:var(--text);font-weight:600;font-variant-numeric:tabular-nums}
.lead{max-width:46rem;margin:0 0 .9rem;color:var(--soft);font-size:.92rem}
.answer{margin:0;padding:0;list-style:none;border-top:1px solid var(--line)}
.answer li{display:grid;grid-template-columns:6.4rem 1fr;gap:1rem;align-items:baseline;padding:.6rem 0;
border-bottom:1px solid var(--line)}
.chip{display:inline-block;padding:.1rem .55rem;border-radius:1rem;font-size:.78rem;font-weight:600;line-height:1.45;
white-space:nowrap;text-align:center}
.answer .chip{justify-self:start}
.better,.done{color:var(--good);background:var(--good-bg)}
.worse,.failed{color:var(--bad);background:var(--bad-bg)}
.stopped,.interrupted{color:var(--warn);background:var(--warn-bg)}
.running{color:var(--busy);background:var(--busy-bg)}
.same,.open,.new{color:var(--mute);background:var(--mute-bg)}
.notice{margin:.6rem 0;padding:.65rem .95rem;border-left:3px solid var(--warn);border-radius:0 .4rem .4rem 0;
background:var(--warn-bg);font-size:.93rem}
.notice.note{border-color:var(--soft);background:var(--panel)}
.notice ul{margin:.3rem 0 0;padding-left:1.2rem;color:var(--soft)}
.notice pre{margin:.4rem 0 .1rem;padding:0;background:none;font-size:.8rem}
table{width:100%;border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:baseline}
th{color:var(--soft);font-size:.8rem;font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
.num{text-align:right;white-space:nowrap}
tr.baseline td{background:linear-gradient(var(--panel),var(--panel))}
tr.baseline td:first-child{padding-left:.6rem}
.arm{min-width:9rem;font-weight:600;overflow-wrap:anywhere}
.tag{display:block;color:var(--soft);font-size:.78rem;font-weight:400}
.at{white-space:nowrap}
.at .none{white-space:normal}
.more{display:block;margin-top:.1rem;color:var(--soft);font-size:.8rem}
.none{color:var(--soft)}
.caption{max-width:52rem;margin-top:.75rem;color:var(--soft);font-size:.83rem}
.plot{width:100%;margin:.25rem 0;overflow:hidden}
.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem 1.5rem}
.small>div{min-width:0}
.keys{display:flex;flex-wrap:wrap;gap:.3rem .45rem;margin:.6rem 0 .4rem}
.keys button{display:inline-flex;align-items:center;gap:.45rem;padding:.2rem .6rem;border:1px solid var(--line);
border-radius:1rem;background:none;color:var(--text);font:inherit;font-size:.82rem;cursor:pointer}
.keys button:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.keys button[aria-pressed=false]{opacity:.4;text-decoration:line-through}
pre{margin:.4rem 0;padding:.85rem 1rem;border-radius:.4rem;background:var(--panel);
font:.83rem/1.5 ui-monospace,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
code{font:.9em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.2rem 1.25rem;margin:.4rem 0;font-size:.88rem}
dt{color:var(--soft);overflow-wrap:anywhere}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent);font-size:.92rem}
footer{margin-top:4rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font-size:.83rem}
@media (max-width:54rem){
main{padding:1.75rem 1rem 3rem}h1{font-size:1.65rem}h2{margin-top:2.5rem}
.answer li{grid-template-columns:1fr;gap:.3rem}
table.arms,.arms tbody,.arms tr,.arms td{display:block;width:100%}
.arms thead{display:none}
.arms tr{padding:.65rem 0;border-bottom:1px solid var(--line)}
.arms tr:first-child{border-top:1px solid var(--line)}
.arms td,.arms td:first-child{display:flex;justify-content:space-between;align-items:baseline;gap:1rem;padding:.14rem 0;border:0;
text-align:right;white-space:normal}
.arms td[data-empty]{display:none}
.arms td.at .none{max-width:60%}
.arms td::before{content:attr(data-label);flex:none;color:var(--soft);font-size:.82rem;font-weight:400}
.arms td.arm .tag{display:inline;margin-left:.5rem}
.arms td.arm{display:block;min-width:0;text-align:left;font-size:1rem}.arms td.arm::before{content:none}
.arms tr.baseline{margin:0 -.6rem;padding:.65rem .6rem;background:var(--panel);width:auto}
.arms tr.baseline td{background:none;padding-left:0}
dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}
}
@media print{
:root{color-scheme:light}
body{font-size:10.5pt}main{max-width:none;padding:0}h2{break-after:avoid}
.plot,.notice,tr,.answer li{break-inside:avoid}
.better,.worse,.same,.open,.done,.failed,.stopped,.interrupted,.running,.new,.notice,tr.baseline td{print-color-adjust:exact;
-webkit-print-color-adjust:exact}
}
"""

# Text colours of the plots follow the page: plotly cannot read CSS variables, so they are set again when the theme changes.
# The Plotly toolbar is hidden: hovering and zooming work without it.
SCRIPT = """
(function(){
var figures=JSON.parse(document.getElementById("figures").textContent);
var dark=window.matchMedia("(prefers-color-scheme: dark)"),print=window.matchMedia("print");
function colours(){var css=getComputedStyle(document.documentElement);
function get(name){return css.getPropertyValue(name).trim()}
return {text:get("--text"),page:get("--page"),line:get("--line")}}
function themed(layout){var c=colours(),out=Object.assign({},layout);
out.font=Object.assign({},layout.font,{color:c.text});
out.hoverlabel=Object.assign({},layout.hoverlabel,{bgcolor:c.page,bordercolor:c.line,
font:Object.assign({},(layout.hoverlabel||{}).font,{color:c.text})});
return out}
var ids=Object.keys(figures);
function draw(){ids.forEach(function(id){var f=figures[id];
Plotly.react(id,f.data,themed(f.layout),{displayModeBar:false,responsive:true,scrollZoom:false})})}
draw();
dark.addEventListener("change",draw);
print.addEventListener("change",draw);
document.querySelectorAll(".keys button").forEach(function(button){button.addEventListener("click",function(){
var arm=button.dataset.arm,on=button.getAttribute("aria-pressed")!=="true";
document.querySelectorAll(".keys button").forEach(function(b){if(b.dataset.arm===arm)b.setAttribute("aria-pressed",on)});
ids.forEach(function(id){figures[id].data.forEach(function(t){if(t.legendgroup===arm)t.visible=on})});draw()})});
})();
"""
