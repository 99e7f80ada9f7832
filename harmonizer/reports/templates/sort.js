for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => {
        const cell = row.cells[column];
        const number = parseFloat(cell.dataset.order ?? cell.textContent);
        return {number, text: cell.textContent.trim()};
      };
      const rows = [...body.rows].map(row => ({row, ...key(row)}));
      rows.sort((a, b) => {
        if (isNaN(a.number) && isNaN(b.number)) {
          return (down ? -1 : 1) * a.text.localeCompare(b.text, undefined, {numeric: true});
        }
        if (isNaN(a.number)) return 1;
        if (isNaN(b.number)) return -1;
        return (down ? -1 : 1) * (a.number - b.number);
      });
      body.append(...rows.map(one => one.row));
    });
  });
}
