#include "harness/report/html/html.h"

namespace dsv32::harness::html {

/// Colours of light and dark, and a layout that holds from 360 columns on. Paper is light, and what
/// is folded on a screen is open there. No font, no picture from elsewhere.
std::string style() {
  return R"(
:root{--bg:#fff;--fg:#1b1f24;--soft:#59636e;--line:#d8dee4;--card:#f6f8fa;--link:#0550ae;
--good:#1a7f37;--bad:#b3261e;--weak:#8a6100;--mark:#111;
--s0:#e3f1ee;--s1:#b9ddd6;--s2:#fde3b3;--s3:#fdc878;--s4:#fba84a;--s5:#f5842c;--s6:#e25f20;
--s7:#c53d1b;--s8:#9c2219;--s9:#6d0f17;--none:#f0f2f4}
@media screen and (prefers-color-scheme:dark){:root{--bg:#0f1317;--fg:#e6e9ed;--soft:#9aa5b1;--line:#2d343c;
--card:#171c22;--link:#79b8ff;--good:#56d364;--bad:#ff8a80;--weak:#e3b341;--mark:#fff;
--s0:#1d3634;--s1:#2c5450;--s2:#5c4718;--s3:#84601a;--s4:#b07a1e;--s5:#d9822b;--s6:#f0763a;
--s7:#ff7a5c;--s8:#ff9a8a;--s9:#ffc9c2;--none:#1a2026}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
main{max-width:72rem;margin:0 auto;padding:1rem 1rem 4rem}
header{border-left:.5rem solid var(--weak);padding:.25rem 0 .25rem 1rem;margin:.5rem 0 1.5rem}
header.pass{border-color:var(--good)}header.fail{border-color:var(--bad)}
header p{margin:.2rem 0}header ol{margin:.2rem 0;padding-left:1.3rem}
.word{font-weight:700;letter-spacing:.06em;color:var(--weak)}
.pass .word,.ok{color:var(--good)}.fail .word,.no{color:var(--bad)}.weak{color:var(--weak)}
h1{font-size:1.35rem;line-height:1.3;margin:.2rem 0 .4rem}
h2{font-size:1.15rem;margin:2.2rem 0 .5rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .35rem}
.soft,.remark,figcaption{color:var(--soft);font-size:.875rem}
.remark{max-width:60rem;margin:.25rem 0 .75rem}
article{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:.75rem 1rem;margin:.75rem 0}
article p{margin:.25rem 0}
.grave{font-weight:600}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.85em}
pre{background:var(--bg);border:1px solid var(--line);border-radius:.35rem;padding:.5rem .6rem;
margin:.5rem 0 .1rem;white-space:pre-wrap}
a{color:var(--link)}
.flow{display:flex;flex-wrap:wrap;gap:1.25rem 2rem;align-items:flex-start}
.scroll{overflow-x:auto;max-width:100%}
figure{margin:0;min-width:0;max-width:100%}
figcaption{margin-bottom:.25rem}
svg{display:block}
svg text{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
fill:var(--soft)}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}
.s5{fill:var(--s5)}.s6{fill:var(--s6)}.s7{fill:var(--s7)}.s8{fill:var(--s8)}.s9{fill:var(--s9)}
.none{fill:var(--none)}.pale{opacity:.38}
.origin{fill:none;stroke:var(--mark)}path.origin{stroke-width:2}
.frame{fill:none;stroke:var(--line)}.cut{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
.band{fill:var(--s1)}.expected{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}
.judged{fill:none;stroke:var(--bad);stroke-width:2}.inside{stroke:var(--link)}
.tables{overflow-x:auto}.ok,.no,.weak{white-space:nowrap}
table{border-collapse:collapse;font-size:.875rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;
border-bottom:1px solid var(--line);overflow-wrap:break-word}
th[scope=row]{font-weight:400}
th[scope=col]{white-space:nowrap}table.facts td{overflow-wrap:anywhere}
section>h3{margin-top:1.1rem}.legend{margin-bottom:.9rem}
table.numbers{min-width:34rem}
table.facts th{color:var(--soft);white-space:nowrap;width:1%;overflow-wrap:normal}
details{margin:.6rem 0}
summary{cursor:pointer;font-weight:600}
details>:not(summary){margin-left:.25rem}
dl{margin:.5rem 0;font-size:.875rem}dt{font-weight:600}dd{margin:0 0 .35rem 1rem;color:var(--soft)}
ul{padding-left:1.2rem;margin:.4rem 0}
@media (max-width:30rem){main{padding:.5rem .75rem 3rem}h1{font-size:1.15rem}
table.facts th,table.facts td{display:block;width:auto;border:0;padding:0}
table.facts td{padding-bottom:.4rem;border-bottom:1px solid var(--line)}}
@media print{body{font-size:10pt}main{max-width:none;padding:0}article,figure,tr{break-inside:avoid}
h2,h3,summary,.remark,.legend{break-after:avoid}summary{list-style:none}
details::details-content{content-visibility:visible;block-size:auto}
.scroll,.tables{overflow:visible}svg{max-width:100%;height:auto}
table.numbers{min-width:0;font-size:8pt;line-height:1.35}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
)";
}

}  // namespace dsv32::harness::html
