// Copies what stands in the element that a button names. Without script the text can be selected; the buttons are shown here.
"use strict";
for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  if (!source || !navigator.clipboard) continue;
  button.hidden = false;
  const label = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy it";
    }
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}
// Loads anew what an element says is to be loaded anew, while somebody looks.
for (const element of document.querySelectorAll("[data-fresh]")) {
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(element.dataset.fresh, { redirect: "error" });
      if (answer.ok) element.innerHTML = await answer.text();
    } catch {
      // The next time may go well.
    }
  }, 2000);
}
