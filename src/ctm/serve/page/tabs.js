// Tabs as the ARIA practices describe them: arrow keys, Home and End move and select.
export function tabs(list, selected) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of all) {
      const mine = each === tab;
      each.setAttribute("aria-selected", String(mine));
      each.tabIndex = mine ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = !mine;
    }
    selected(tab.id);
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const tab = all[(to + all.length) % all.length];
    tab.focus();
    select(tab);
  });
}
