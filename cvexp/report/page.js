"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const made = (tag, properties = {}, children = []) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // --- tables ---------------------------------------------------------------------------------------------------

  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // A cell's rank among the kinds: numbers, then text, then nothing at all, whichever way a column is sorted.
  const read = (cell) => {
    if (cell.dataset.absent !== undefined) return { kind: 2, value: 0 };
    if (cell.dataset.v !== undefined) return { kind: 0, value: Number(cell.dataset.v) };
    return { kind: 1, value: cell.textContent };
  };
  const compare = (a, b) => (a.kind === 0 ? Math.sign(a.value - b.value) || 0 : words.compare(a.value, b.value));

  function sort(table, column, direction, original) {
    const keyed = original.map((row, place) => ({ row, place, key: read(row.cells[column]) }));
    const sign = direction === "descending" ? -1 : 1;
    if (direction !== "none") {
      keyed.sort((a, b) => {
        if (a.key.kind !== b.key.kind) return a.key.kind - b.key.kind;
        return (a.key.kind === 2 ? 0 : sign * compare(a.key, b.key)) || a.place - b.place;
      });
    }
    table.tBodies[0].append(...keyed.map((entry) => entry.row));
  }

  // One click sorts from the column's interesting end, the second from the other, the third restores the order.
  function sortable(table) {
    const original = [...table.tBodies[0].rows];
    const headings = [...table.tHead.rows[0].cells];
    if (original.some((row) => row.cells.length !== headings.length)) return;
    headings.forEach((heading, column) => {
      const first = heading.dataset.first === "max" ? ["descending", "ascending"] : ["ascending", "descending"];
      heading.querySelector("button").addEventListener("click", () => {
        const cycle = ["none", ...first];
        const next = cycle[(cycle.indexOf(heading.getAttribute("aria-sort")) + 1) % cycle.length];
        headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? next : "none"));
        sort(table, column, next, original);
      });
    });
  }

  // A row is kept if it has every word of the box, in any cell.
  function filterable(part, table) {
    const box = part.querySelector("input[type=search]");
    if (!box) return;
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: [...row.cells].map((c) => c.textContent).join("\n").toLowerCase() }));
    const output = part.querySelector("output");
    const update = () => {
      const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const { row, text } of rows) {
        row.hidden = !wanted.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      output.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
    };
    box.addEventListener("input", update);
    update();
  }

  // Numbers in full, not as shown. Text that a spreadsheet would run as a formula is kept from it.
  function comma(cell) {
    if (cell.dataset.absent !== undefined) return "";
    const text = cell.dataset.v ?? cell.textContent.replace(/^[=+\-@\t]/, "'$&");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv(table) {
    const name = (heading) => comma(heading.querySelector("button"));
    const head = [...table.tHead.rows[0].cells].map(name).join(",");
    const body = [...table.tBodies[0].rows, ...(table.tFoot?.rows ?? [])].filter((row) => !row.hidden);
    return [head, ...body.map((row) => [...row.cells].map(comma).join(","))].join("\r\n") + "\r\n";
  }

  function save(content, name) {
    const link = made("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  for (const part of all("figure.table")) {
    const table = part.querySelector("table");
    sortable(table);
    filterable(part, table);
    const tools = part.querySelector(".tools");
    tools.hidden = !tools.children.length;
    part.querySelector(".csv")?.addEventListener("click", () => save(new Blob(["\ufeff", csv(table)], { type: "text/csv" }), `${part.id}.csv`));
  }

  // --- images ---------------------------------------------------------------------------------------------------

  function blob(uri) {
    const [head, body] = uri.split(",");
    const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: head.slice(5).split(";")[0] });
  }

  const button = (text, label, action) => {
    const element = made("button", { type: "button", textContent: text, title: label });
    element.setAttribute("aria-label", label);
    element.addEventListener("click", action);
    return element;
  };

  const light = { group: [], at: 0 };
  const image = made("img");
  const stage = made("div", { className: "stage" }, [image]);
  const caption = made("p");
  const count = made("span", { className: "count" });
  const before = button("←", "previous image", () => step(-1));
  const after = button("→", "next image", () => step(1));
  const keep = button("Save", "save the image", () => save(blob(image.src), light.group[light.at].dataset.name));
  const close = button("✕", "close", () => dialog.close());
  const dialog = made("dialog", { className: "lightbox" }, [made("div", { className: "top" }, [count, before, after, keep, close]), stage, caption]);
  dialog.setAttribute("aria-label", "image");
  close.autofocus = true;

  function show() {
    const zoom = light.group[light.at];
    const source = zoom.querySelector("img");
    stage.classList.remove("whole");
    image.src = source.src;
    image.alt = source.alt;
    image.classList.toggle("vector", source.src.startsWith("data:image/svg"));
    caption.textContent = zoom.parentElement.querySelector("figcaption")?.textContent ?? "";
    const badge = zoom.parentElement.querySelector(".badge")?.textContent;
    const several = light.group.length > 1;
    before.hidden = after.hidden = !several;
    count.textContent = [several ? `${light.at + 1} of ${light.group.length}` : "", badge ?? ""].filter(Boolean).join("  ·  ");
  }

  function step(by) {
    light.at = (light.at + by + light.group.length) % light.group.length;
    show();
  }

  image.addEventListener("click", () => stage.classList.toggle("whole"));
  stage.addEventListener("click", (event) => event.target === stage && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => light.group[light.at]?.focus());
  if (document.querySelector(".zoom")) document.body.append(dialog);

  for (const zoom of all(".zoom")) {
    zoom.addEventListener("click", () => {
      const gallery = zoom.closest(".gallery");
      light.group = gallery ? all("figure:not([hidden]) > .zoom", gallery) : [zoom];
      light.at = light.group.indexOf(zoom);
      show();
      dialog.showModal();
    });
  }

  for (const more of all(".gallery .more")) {
    const cards = all("figure", more.parentElement);
    const first = Number(more.dataset.first);
    const update = (shown) => {
      cards.forEach((card, place) => (card.hidden = place >= shown));
      more.hidden = shown >= cards.length;
      more.textContent = `Show ${Math.min(first, cards.length - shown)} more of ${cards.length}`;
      more.onclick = () => update(shown + first);
    };
    update(first);
  }

  // --- the page -------------------------------------------------------------------------------------------------

  for (const copy of all(".copy")) {
    if (!navigator.clipboard) break;
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(copy.previousElementSibling.textContent);
        copy.textContent = "copied";
      } catch {
        copy.textContent = "not allowed";
      }
      setTimeout(() => (copy.textContent = "copy"), 1500);
    });
  }

  const links = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
  if (links.size) {
    const sections = all("main > section");
    const bar = document.querySelector(".contents ul");
    const mark = () => {
      const end = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
      const passed = sections.filter((section) => section.getBoundingClientRect().top < Math.min(innerHeight / 3, 240));
      const current = end ? sections.at(-1) : passed.at(-1) ?? sections[0];
      for (const [name, link] of links) {
        if (name !== current.id) link.removeAttribute("aria-current");
        else if (!link.hasAttribute("aria-current")) {
          link.setAttribute("aria-current", "true");
          bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 3 });
        }
      }
    };
    addEventListener("scroll", mark, { passive: true });
    addEventListener("resize", mark);
    mark();
  }

  // On paper everything is open.
  addEventListener("beforeprint", () => {
    for (const fold of all("details:not([open])")) {
      fold.open = true;
      fold.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const fold of all("details[data-printed]")) {
      fold.open = false;
      delete fold.dataset.printed;
    }
  });
})();
