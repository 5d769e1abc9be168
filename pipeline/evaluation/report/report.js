(() => {
  const tip = document.getElementById("tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x - box.width / 2), innerWidth - box.width - 8);
    const above = y - box.height - 14;
    tip.style.left = left + "px";
    tip.style.top = (above > 4 ? above : y + 22) + "px";
  };
  const hide = () => { tip.hidden = true; };
  const short = (v) => {
    const size = Math.abs(v);
    if (size >= 1000) return Math.round(v).toLocaleString("en");
    return size !== 0 && size < 1e-4 ? v.toExponential(1) : String(+v.toPrecision(3));
  };

  for (const item of document.querySelectorAll("[data-tip]")) {
    item.addEventListener("pointermove", (e) => show(item.dataset.tip, e.clientX, e.clientY));
    item.addEventListener("pointerleave", hide);
    item.addEventListener("focus", () => {
      if (!item.matches(":focus-visible")) return;
      const box = item.getBoundingClientRect();
      show(item.dataset.tip, box.left + box.width / 2, box.top);
    });
    item.addEventListener("blur", hide);
  }

  for (const chart of document.querySelectorAll("[data-lines]")) {
    const data = JSON.parse(chart.dataset.lines);
    const cross = chart.querySelector(".cross");
    const height = chart.viewBox.baseVal;
    chart.addEventListener("pointermove", (e) => {
      const box = chart.getBoundingClientRect();
      const x = (e.clientX - box.left) / box.width * height.width;
      const share = Math.min(1, Math.max(0, (x - data.left) / (data.right - data.left)));
      const step = data.start + share * (data.end - data.start);
      const rows = data.lines.map((line) => {
        let best = 0;
        line.x.forEach((v, i) => { if (Math.abs(v - step) < Math.abs(line.x[best] - step)) best = i; });
        return line.name + "  " + short(line.y[best]) + (data.unit ? " " + data.unit : "");
      });
      cross.setAttribute("transform", "translate(" + (data.left + share * (data.right - data.left)) + " 0)");
      chart.classList.add("live");
      show("step " + short(step) + "\n" + rows.join("\n"), e.clientX, e.clientY);
    });
    chart.addEventListener("pointerleave", () => { chart.classList.remove("live"); hide(); });
  }

  const root = document.documentElement;
  const button = document.getElementById("theme");
  // A browser may refuse to remember anything for a file: then the theme is that of the system each time.
  const kept = (value) => {
    try {
      if (value) localStorage.setItem("hyco-theme", value);
      return localStorage.getItem("hyco-theme");
    } catch { return null; }
  };
  if (["dark", "light"].includes(kept())) root.dataset.theme = kept();
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; kept(root.dataset.theme); label(); });
  button.hidden = false;
  label();
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
})();
