// The light / dark / auto switch. Loaded before the page is painted, so that a chosen theme does not flash.
(() => {
  const ORDER = ["auto", "light", "dark"];
  const KEY = "dunnock-theme";

  function chosen() {
    try {
      const theme = localStorage.getItem(KEY);
      return ORDER.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme-switch");
    if (button) {
      button.textContent = button.dataset[theme];
      button.hidden = false;
    }
  }

  function turn() {
    const theme = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // kept for this page only
    }
    apply(theme);
  }

  apply(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    apply(chosen());
    document.getElementById("theme-switch")?.addEventListener("click", turn);
  });
})();
