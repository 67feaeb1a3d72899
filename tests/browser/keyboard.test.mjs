// Without a mouse: signing in and making a key by Tab and Enter, and seeing where one is.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, PASSWORD, secretOn } from './house.mjs';

const STOPS_MAX = 80;
const OUTLINE_PX_MIN = 2;

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

// Where the focus is, and how it shows.
const focused = (page) =>
  page.evaluate(() => {
    const here = document.activeElement;
    const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(here);
    const box = here.getBoundingClientRect();
    return {
      name: (here.getAttribute('aria-label') ?? here.labels?.[0]?.textContent ?? here.textContent).trim(),
      outline_px: outlineStyle === 'none' || outlineColor.endsWith(', 0)') ? 0 : Number.parseFloat(outlineWidth),
      is_seen: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight,
      what: here.outerHTML.slice(0, 120),
    };
  });

// Presses Tab until that is reached; every stop on the way must be seen.
const tabTo = async (page, name) => {
  const passed = [];
  while (passed.length < STOPS_MAX) {
    await page.keyboard.press('Tab');
    const here = await focused(page);
    assert.ok(here.is_seen && here.outline_px >= OUTLINE_PX_MIN, `the focus is not seen on ${JSON.stringify(here)}`);
    if (here.name === name) return passed;
    passed.push(here.name);
  }
  return assert.fail(`${name} is not reached, but ${passed}`);
};

const enter = async (page) => {
  const moved = page.waitForEvent('load');
  await page.keyboard.press('Enter');
  await moved;
};

for (const width of [360, 1440]) {
  test(`signing in and making a key by the keyboard, at ${width} px`, async () => {
    const email = `ada-${width}@example.com`;
    const before = await house.customer(email);
    await before.context().close();

    const page = await house.visitor({ viewport: { width, height: 800 } });
    await page.goto('/sign-in');
    await tabTo(page, 'E-mail address');
    await page.keyboard.type(email);
    await tabTo(page, 'Password');
    await page.keyboard.type(PASSWORD);
    await enter(page);
    assert.equal(new URL(page.url()).pathname, '/overview');

    await tabTo(page, 'Skip to the content');
    await page.keyboard.press('Enter');
    await page.keyboard.press('Tab');
    assert.ok(await page.evaluate(() => document.activeElement.closest('main') !== null), 'the navigation is skipped');

    await page.goto('/overview');
    await tabTo(page, 'Keys');
    await enter(page);
    await tabTo(page, 'New key');
    await enter(page);
    await tabTo(page, 'Name');
    await page.keyboard.type('by keyboard');
    await tabTo(page, 'Make the key');
    await enter(page);
    assert.match(await secretOn(page), /^tg_live_/);
    assert.equal(await house.statusOf(await secretOn(page)), 200);
  });
}
