// Before anything is drawn, so that the page doesn't flash: the theme that was chosen, else the system's.
try {
  const theme = localStorage.getItem("tokvid.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // without storage the system's theme holds
}
