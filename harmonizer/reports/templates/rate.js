// Ratings of scans: keep, exclude or unsure with a comment, in the browser's storage of this study.
const ratings = (() => {
  const root = document.querySelector("[data-study]");
  const key = "harmonizer-ratings-" + (root ? root.dataset.study : "");
  const words = ["", "keep", "exclude", "unsure"];
  const listeners = [];
  let saved = true;
  const read = () => {
    try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { saved = false; return {}; }
  };
  const all = read();
  const write = () => {
    try { localStorage.setItem(key, JSON.stringify(all)); } catch { saved = false; }
    for (const tell of listeners) tell();
  };
  const set = (scan, change) => {
    const entry = {rating: "", comment: "", ...all[scan], ...change};
    if (entry.rating || entry.comment) all[scan] = entry; else delete all[scan];
    write();
  };
  const plain = text => String(text).replace(/\s+/g, " ").trim();
  const rows = () => Object.keys(all).sort().filter(scan => words.includes(all[scan].rating))
    .map(scan => [scan, all[scan].rating || "unsure", plain(all[scan].comment) || "n/a"]);
  const table = () => [["scan_id", "rating", "comment"], ...rows()]
    .map(row => row.join("\t")).join("\n") + "\n";
  const download = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], {type: "text/tab-separated-values"}));
    link.download = "ratings.tsv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const field = (place, scan) => {
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", "Rating of " + scan);
    for (const word of words) choice.add(new Option(word || "not rated", word));
    const comment = document.createElement("input");
    comment.type = "text";
    comment.placeholder = "comment";
    comment.setAttribute("aria-label", "Comment on " + scan);
    const show = () => {
      const entry = all[scan] || {rating: "", comment: ""};
      choice.value = entry.rating;
      if (document.activeElement !== comment) comment.value = entry.comment;
      place.dataset.rating = entry.rating;
      place.dataset.order = (words.indexOf(entry.rating) + 3) % 4;  // not rated comes last
    };
    choice.addEventListener("change", () => set(scan, {rating: choice.value}));
    comment.addEventListener("input", () => set(scan, {comment: comment.value}));
    listeners.push(show);
    place.append(choice, comment);
    show();
  };
  for (const place of document.querySelectorAll("[data-rate]")) field(place, place.dataset.rate);
  for (const box of document.querySelectorAll(".rating-tools")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "export";
    button.addEventListener("click", download);
    const note = document.createElement("span");
    const show = () => {
      const count = rows().length;
      button.textContent = `Export ratings (${count})`;
      button.disabled = !count;
      note.textContent = saved ? " Saved in this browser."
        : " This browser does not store data of this page: export before you close it.";
    };
    listeners.push(show);
    box.append(button, note);
    box.hidden = false;
    show();
  }
  window.addEventListener("storage", event => {
    if (event.key !== key) return;
    const now = read();
    for (const scan of Object.keys(all)) delete all[scan];
    Object.assign(all, now);
    for (const tell of listeners) tell();
  });
  return {of: scan => (all[scan] || {rating: ""}).rating, onChange: tell => listeners.push(tell)};
})();
