// Keeps the page current: asks for it again every few seconds and replaces the parts marked data-live.
// What it puts in comes from the server's templates, where every name is escaped; scripts in it do not run.
"use strict";
(() => {
  const PERIOD_MS = 5000;
  const live = document.getElementById("live");
  const clockTime = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

  function localTimes(root) {
    for (const element of root.querySelectorAll("time")) {
      const unix = Number(element.dataset.unix ?? element.dataset.clock);
      const shown = clockTime.format(new Date(unix * 1000));
      if (element.dataset.clock) element.textContent = shown;
      element.title = shown;
    }
  }

  function isBusy(part) {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  }

  function replace(part, fresh) {
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const adopted = document.adoptNode(fresh);
    localTimes(adopted);
    part.replaceWith(adopted);
    if (focused !== null) {
      const again = [...adopted.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focused);
      if (again) again.focus({ preventScroll: true });
    }
  }

  function say(text, lost) {
    live.classList.toggle("lost", lost);
    const label = live.querySelector("span");
    if (label.textContent !== text) label.textContent = text;
    live.classList.remove("fresh");
    void live.offsetWidth; // restarts the animation
    if (!lost) live.classList.add("fresh");
  }

  async function refresh() {
    const reply = await fetch(location.href, { cache: "no-store" });
    if (!reply.ok) throw new Error(String(reply.status));
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const before = [...document.querySelectorAll("[data-live]")].map((part) => part.id).join();
    const after = [...page.querySelectorAll("[data-live]")].map((part) => part.id).join();
    if (before !== after) { location.reload(); return; }
    for (const part of document.querySelectorAll("[data-live]")) {
      if (!isBusy(part)) replace(part, page.getElementById(part.id));
    }
    document.dispatchEvent(new Event("refreshed"));
  }

  async function tick() {
    if (!document.hidden) {
      try {
        await refresh();
        say("Live", false);
      } catch {
        say("The server does not answer, trying again", true);
      }
    }
    setTimeout(tick, PERIOD_MS);
  }

  localTimes(document);
  if (document.querySelector("[data-live]")) setTimeout(tick, PERIOD_MS);
})();
