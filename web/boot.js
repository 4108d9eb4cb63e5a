// Runs before the first paint, so that a chosen theme does not flash in the other one.
(function () {
  var said = new URLSearchParams(location.search).get('theme');
  try {
    said = said || localStorage.getItem('photon-theme');
  } catch (e) {
    said = said || null;
  }
  if (said === 'light' || said === 'dark') document.documentElement.dataset.theme = said;
})();
