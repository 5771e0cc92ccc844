/* Live pages: marked elements are fetched again while the tab is visible.
 *
 * data-autorun-refresh="5"     the element is replaced every 5 seconds by the one of the same id
 * data-autorun-fetch="url"     the element is replaced once by what the url gives
 * data-autorun-token="token"   it is fetched by a POST, which may store the result for others
 * data-autorun-copied="words"  a button that copies the text before it, and then shows the words
 * data-autorun-stale           the words to show, with TIME, once the page cannot be fetched
 * data-autorun-rows            rows are updated one by one; new ones wait until they are shown
 * data-autorun-new             the words for one of them, data-autorun-many for several
 *
 * Nothing is fetched while the tab is hidden or once the page has no such element.
 */
"use strict";
(() => {
  const headers = { "X-Requested-With": "autorun" };
  const names = ["id", "href", "aria-label", "name"];

  async function load(url, token) {
    const post = { method: "POST", headers: { ...headers, "X-CSRFToken": token } };
    const response = await fetch(url, { headers, credentials: "same-origin", ...(token && post) });
    if (!response.ok || response.redirected) throw new Error(response.status);
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  /* The element of `next` that corresponds to one of `old`; none while it is being filled in. */
  function twin(element, old, next) {
    const name = names.find((each) => element.hasAttribute(each));
    if (!name || element.matches("input, select, textarea")) return undefined;
    const selector = `${element.localName}[${name}="${CSS.escape(element.getAttribute(name))}"]`;
    return next.querySelectorAll(selector)[[...old.querySelectorAll(selector)].indexOf(element)];
  }

  function put(next, old, isNeeded) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const following = focused && twin(focused, old, next);
    if (focused && !following && !isNeeded) return;
    const selection = getSelection();
    if (!isNeeded && !selection.isCollapsed && selection.containsNode(old, true)) return;
    for (const open of old.querySelectorAll("details[open][id]")) {
      next.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
    }
    old.replaceWith(next);
    following?.focus({ preventScroll: true });
  }

  function whenVisible() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
    }).then(whenVisible);
  }

  const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

  function showNew(rows, body, notice) {
    // Between rows that are all new and those that are here, others may be missing.
    if (rows.length === Number(notice.dataset.all)) return location.reload();
    body.prepend(...rows);
    notice.hidden = true;
  }

  function updateRows(page) {
    const body = document.querySelector("[data-autorun-rows]");
    const next = body && page.getElementById(body.id);
    if (!next) return;
    const all = [...next.rows];
    const fresh = all.filter((row) => !document.getElementById(row.id));
    for (const row of all.filter((each) => !fresh.includes(each))) {
      const old = [...document.getElementById(row.id).cells];
      for (const [index, cell] of [...row.cells].entries()) {
        const isSame = cell.innerHTML === old[index]?.innerHTML || cell.matches(".ar-tick");
        if (old[index] && !isSame) put(cell, old[index], false);
      }
    }
    const notice = document.getElementById("new");
    const words = fresh.length === 1 ? notice.dataset.autorunNew : notice.dataset.autorunMany;
    const told = notice.firstElementChild;
    if (told.textContent !== `${fresh.length} ${words}`) told.textContent = `${fresh.length} ${words}`;
    notice.dataset.all = all.length;
    notice.hidden = !fresh.length;
    notice.lastElementChild.onclick = () => showNew(fresh, body, notice);
  }

  async function refresh() {
    const page = await load(location.href);
    document.title = page.title;
    const tabs = page.getElementById("tabs");
    if (tabs) put(tabs, document.getElementById("tabs"), false);
    updateRows(page);
    for (const part of document.querySelectorAll("[data-autorun-refresh]")) {
      const next = page.getElementById(part.id);
      if (next) put(next, part, false);
    }
  }

  async function keepFresh() {
    let updated = new Date();
    for (let failures = 0; ; ) {
      // A finished count may have changed what the page says elsewhere.
      if (await completeAll()) await refresh().catch(() => {});
      const first = document.querySelector("[data-autorun-refresh]");
      if (!first) return;
      await pause(Number(first.dataset.autorunRefresh) * 2 ** Math.min(failures, 5));
      await whenVisible();
      failures = await refresh().then(() => 0, () => failures + 1);
      if (!failures) updated = new Date();
      for (const stale of document.querySelectorAll("[data-autorun-stale]")) {
        stale.hidden = !failures;
        const words = stale.dataset.autorunStale.replace("TIME", updated.toLocaleTimeString());
        if (failures) stale.textContent = words;
      }
    }
  }

  async function complete(old) {
    old.setAttribute("aria-busy", "true");
    await whenVisible();
    try {
      const next = (await load(old.dataset.autorunFetch, old.dataset.autorunToken)).body.firstElementChild;
      if (!next) return;
      put(next, old, true);
      if (next.dataset.autorunFetch) await complete(next);
    } catch {
      old.removeAttribute("aria-busy");
    }
  }

  async function completeAll() {
    const parts = [...document.querySelectorAll("[data-autorun-fetch]")];
    for (const part of parts) part.setAttribute("aria-busy", "true");
    const isSeen = (part) => part.getBoundingClientRect().top < innerHeight;
    const seen = parts.filter(isSeen);
    for (const part of [...seen, ...parts.filter((each) => !seen.includes(each))]) await complete(part);
    return parts.length;
  }

  function tickAll(event) {
    const boxes = event.target.form?.querySelectorAll("input[name=ids]") ?? [];
    for (const box of boxes) box.checked = event.target.checked;
  }

  async function copy(event) {
    const button = event.target.closest("[data-autorun-copied]");
    if (!button) return;
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.firstChild.textContent = button.dataset.autorunCopied;
  }

  // Browsers have a clipboard only for pages that came by TLS or from this machine.
  document.documentElement.classList.toggle("ar-copies", Boolean(navigator.clipboard));
  document.addEventListener("click", copy);
  document.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll("[data-autorun-tick-all]")) {
      box.hidden = false;
      box.addEventListener("change", tickAll);
    }
    keepFresh();
  });
})();
