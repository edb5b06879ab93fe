export const STYLE = `
:host { display: block; }
.viewer { --back:#fff; --ink:#222; --quiet:#595959; --line:#d4d4d4; --soft:#f4f4f4; --accent:#0072b2; --warn:#8a3b00; --glow:230,159,0; --most:1;
  font: 14px/1.45 "Source Sans Pro","Segoe UI",Helvetica,Arial,sans-serif; color:var(--ink); background:var(--back); padding:10px;
  position:relative; border-radius:4px; text-align:left; container-type:inline-size; color-scheme:light; }
.viewer.dark { --back:#14181f; --ink:#e8e8e8; --quiet:#b3bac4; --line:#3a424e; --soft:#1f2630; --accent:#7cc7f2; --warn:#ffb27a; --most:.5; color-scheme:dark; }
* { box-sizing:border-box; } [hidden] { display:none !important; }
p { margin:4px 0; } h2 { font-size:15px; margin:0; font-weight:600; }
.quiet { color:var(--quiet); } .small { font-size:13px; }
.controls { display:flex; flex-wrap:wrap; gap:8px 14px; align-items:end; padding-bottom:8px; border-bottom:1px solid var(--line); }
.controls label, .layers { display:flex; flex-direction:column; font-size:12px; color:var(--quiet); }
.layers > span { display:flex; gap:4px; align-items:center; }
.controls .wide { flex:1 1 240px; min-width:0; } .controls .problem { display:flex; flex:2 1 300px; gap:4px; align-items:end; min-width:0; }
.controls .problem label { flex:1; min-width:0; }
.controls .check { flex-direction:row; gap:6px; align-items:center; min-height:30px; }
select, input[type=number], input[type=search], input[type=text], button { font:inherit; font-size:14px; color:var(--ink); background:var(--back); border:1px solid var(--quiet);
  border-radius:3px; padding:3px 6px; min-height:30px; max-width:100%; }
select { width:100%; text-overflow:ellipsis; } input[type=number] { width:76px; } input[type=search] { width:100%; } input[type=range] { width:120px; min-height:30px; }
button { cursor:pointer; } button:hover { background:var(--soft); } button[aria-pressed=true] { background:var(--ink); color:var(--back); }
:disabled { opacity:1; color:var(--quiet); cursor:default; }
:focus-visible { outline:3px solid #d55e00; outline-offset:1px; } .dark :focus-visible { outline-color:#ffb27a; }
.notes { color:var(--warn); margin:8px 0 0; padding-left:18px; } .notes:empty { display:none; }
.progress { display:flex; gap:10px; align-items:center; margin-top:8px; } .progress[hidden] { display:none; } progress { width:160px; }
section { margin-top:12px; } .head { display:flex; flex-wrap:wrap; gap:4px 12px; align-items:center; justify-content:space-between; }
.buttons { display:flex; gap:4px; flex-wrap:wrap; }
.panels { display:grid; gap:8px; grid-template-columns:repeat(var(--columns,1),minmax(0,1fr)); }
figure { margin:6px 0 0; min-width:0; } figcaption { font-size:13px; } canvas { width:100%; display:block; border:1px solid var(--line); border-radius:3px; }
canvas.graph { height:440px; cursor:grab; } canvas.heat { height:340px; } canvas.scatter { aspect-ratio:1/1; max-width:400px; }
.two { display:grid; gap:12px 24px; grid-template-columns:minmax(0,5fr) minmax(0,6fr); } .scatters { display:grid; gap:8px; grid-template-columns:repeat(auto-fit,minmax(240px,1fr)); }
.scroll { overflow-x:auto; } table { border-collapse:collapse; font-variant-numeric:tabular-nums; width:100%; }
th, td { text-align:right; padding:2px 8px; border-bottom:1px solid var(--line); white-space:nowrap; } th:first-child, td:first-child { text-align:left; padding-left:0; }
td button { border:0; padding:2px 4px; min-height:24px; background:none; color:var(--accent); text-decoration:underline; }
tr.chosen td { background:rgba(var(--glow),.25); }
.question strong { white-space:pre-wrap; } .answer { margin-top:6px; } .tokens { line-height:1.9; max-height:330px; overflow-y:auto; } .whole { white-space:pre-wrap; overflow-wrap:anywhere; }
.token { white-space:pre-wrap; overflow-wrap:anywhere; padding:1px 3px; margin:1px; border-radius:2px; background:var(--soft); }
.token[style] { background:rgba(var(--glow),calc(var(--loss)*var(--most))); }
.token.scored { border-bottom:2px solid var(--accent); } .token.parts::before { content:"◆"; color:#d55e00; padding-right:2px; } .dark .token.parts::before { color:#ff8a3d; }
.tip { position:absolute; pointer-events:none; background:var(--ink); color:var(--back); padding:4px 8px; border-radius:3px; font-size:13px; white-space:pre; z-index:5; max-width:95%; }
.tip[hidden] { display:none; }
.said { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%); white-space:nowrap; }
.empty { display:none; }
@container (max-width:760px) { .two { grid-template-columns:minmax(0,1fr); } canvas.graph { height:380px; } canvas.heat { height:250px; } }
@container (max-width:600px) { .panels { grid-template-columns:minmax(0,1fr); } canvas.heat { height:300px; } }
`;
