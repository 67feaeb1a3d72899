// What holds for every page, whatever is on it. What is found wrong is a list of sentences; screenshots are kept to be looked at.

import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const WIDTHS = [360, 1440];
const SCHEMES = ['light', 'dark'];
const KIB_MAX = 100;
const screenshots = process.env.TOLLGATE_SCREENSHOTS;

// Makes a page ready to be inspected: with axe on it, and counting what it loads.
export const inspectable = async (page) => {
  await page.context().addInitScript({ path: AXE });
  const wire = await page.context().newCDPSession(page);
  await wire.send('Network.enable');
  // A page is as heavy as it is for whoever was never here.
  await wire.send('Network.setCacheDisabled', { cacheDisabled: true });
  page.loadedBytes = 0;
  wire.on('Network.loadingFinished', ({ encodedDataLength }) => (page.loadedBytes += encodedDataLength));
  return page;
};

// Opens a page anew and inspects it.
export const inspectAt = async (page, path, name) => {
  page.complaints.length = 0;
  page.loadedBytes = 0;
  const answer = await page.goto(path, { waitUntil: 'networkidle' });
  const wrong = answer.status() === 200 ? [] : [`status ${answer.status()}`];
  page.kib = Math.ceil(page.loadedBytes / 1024);
  if (page.kib > KIB_MAX || page.kib === 0) wrong.push(`${page.kib} KiB`);
  return [...wrong, ...(await inspect(page, name))];
};

// Inspects what a page shows now.
export const inspect = async (page, name) => {
  const wrong = page.complaints.splice(0);
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: 800 });
    for (const colorScheme of SCHEMES) {
      await page.emulateMedia({ colorScheme });
      // Until it is painted so.
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
      if (screenshots && name) await photograph(page, [name, width, colorScheme]);
      wrong.push(...(await hindrances(page)).map((hindrance) => `${width} px, ${colorScheme}: ${hindrance}`));
    }
    const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    if (beyond > 0) wrong.push(`${width} px: ${beyond} px beyond the edge, ${await widest(page)}`);
  }
  return [...wrong, ...page.complaints.splice(0)];
};

const photograph = async (page, name) => {
  await mkdir(screenshots, { recursive: true });
  await page.screenshot({ path: join(screenshots, `${name.join('-')}.png`), fullPage: true });
};

// What axe finds that keeps people out.
const hindrances = async (page) => {
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.target} ${node.html}`).slice(0, 3).join(' | ')}`);
};

// What reaches beyond the right edge, the innermost last.
const widest = (page) =>
  page.evaluate(() => {
    const edge = document.documentElement.clientWidth;
    const beyond = [...document.querySelectorAll('body *')].filter((each) => {
      const [{ left, right }, { overflowX }] = [each.getBoundingClientRect(), getComputedStyle(each)];
      // A text may reach further than its element.
      const reach = overflowX === 'visible' ? Math.max(right, left + each.scrollWidth) : right;
      return reach > edge && !each.parentElement.closest('.scroll, pre');
    });
    return beyond.slice(-3).map((each) => each.outerHTML.replace(/\s+/g, ' ').slice(0, 120)).join(' | ');
  });
