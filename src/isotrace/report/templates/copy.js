// A button with data-copy copies that. A page opened from a file may have no clipboard: then a selection is copied.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position:fixed;top:0;opacity:0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button || button.dataset.said) return;
  button.dataset.said = (await copied(button.dataset.copy)) ? "copied" : "not copied";
  setTimeout(() => { delete button.dataset.said; }, 1500);
});
