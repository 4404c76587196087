"use strict";
// Tooltips of the plots, for mouse, touch and keyboard; a table's row and its point light up together.
// Without this script the page holds the same: every point's figures stand in the table beside the plot.
(() => {
  const tip = document.getElementById("tip");
  const rowOf = (point) => {
    const beside = point.closest(".beside");
    const index = [...point.closest("svg").querySelectorAll(".point")].indexOf(point);
    const rows = beside ? [...beside.querySelectorAll("tr[data-point]")] : [];
    return rows[index];
  };
  let current = null;
  const show = (point) => {
    current = point;
    tip.textContent = point.getAttribute("aria-label").split("; ").join("\n");
    tip.hidden = false;
    const box = point.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
    rowOf(point)?.classList.add("lit");
  };
  const hide = (point) => {
    current = null;
    tip.hidden = true;
    rowOf(point)?.classList.remove("lit");
  };
  for (const point of document.querySelectorAll(".plot .point")) {
    for (const kind of ["mouseenter", "focus"]) point.addEventListener(kind, () => show(point));
    for (const kind of ["mouseleave", "blur"]) point.addEventListener(kind, () => hide(point));
    const row = rowOf(point);
    if (!row) continue;
    row.addEventListener("mouseenter", () => point.classList.add("lit"));
    row.addEventListener("mouseleave", () => point.classList.remove("lit"));
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  addEventListener("scroll", () => { if (current && !tip.hidden) show(current); }, { passive: true });
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
})();
