/* Live pages: what is marked is fetched again while somebody looks at it.
 *
 * data-autorun-refresh="5"     the element is replaced every 5 seconds by the one of the same id
 * data-autorun-fetch="url"     the element is replaced once by what the url gives
 *
 * Nothing is fetched while the tab is hidden, and no more once the page has no such element.
 */
"use strict";
(() => {
  const headers = { "X-Requested-With": "autorun" };

  async function load(url) {
    const response = await fetch(url, { headers, credentials: "same-origin" });
    if (!response.ok || response.redirected) throw new Error(response.status);
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  function put(next, old) {
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    for (const open of old.querySelectorAll("details[open][id]")) {
      next.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
    }
    old.replaceWith(next);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  function whenVisible() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
    }).then(whenVisible);
  }

  const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

  async function refresh(failures = 0) {
    const old = document.querySelector("[data-autorun-refresh]");
    if (!old) return;
    await pause(Number(old.dataset.autorunRefresh) * 2 ** Math.min(failures, 5));
    await whenVisible();
    try {
      const page = await load(location.href);
      for (const part of document.querySelectorAll("[data-autorun-refresh]")) {
        const next = page.getElementById(part.id);
        if (next && !part.contains(document.querySelector(":focus:is(input,select)"))) {
          put(next, part);
        }
      }
      refresh();
    } catch {
      refresh(failures + 1);
    }
  }

  async function complete(old) {
    old.setAttribute("aria-busy", "true");
    await whenVisible();
    try {
      const next = (await load(old.dataset.autorunFetch)).body.firstElementChild;
      if (!next) return;
      put(next, old);
      if (next.dataset.autorunFetch) await complete(next);
    } catch {
      old.removeAttribute("aria-busy");
    }
  }

  async function completeAll() {
    const parts = [...document.querySelectorAll("[data-autorun-fetch]")];
    for (const part of parts) part.setAttribute("aria-busy", "true");
    for (const part of parts) await complete(part);
  }

  function tickAll(event) {
    const boxes = event.target.form?.querySelectorAll("input[name=ids]") ?? [];
    for (const box of boxes) box.checked = event.target.checked;
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll("[data-autorun-tick-all]")) {
      box.hidden = false;
      box.addEventListener("change", tickAll);
    }
    completeAll().then(() => refresh());
  });
})();
