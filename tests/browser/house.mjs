// A house for a file of tests: `tollgate quickstart` in a folder of its own, a browser, and people before it.
//
// TOLLGATE_BINARY is the binary, TOLLGATE_CHROMIUM the browser. Both processes end with the file that started them.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

const START_MS_MAX = 60_000;
const STOP_MS_MAX = 15_000;
// For a page to come, or a thing on it.
const PAGE_MS_MAX = 20_000;
export const PASSWORD = 'correct horse battery';

const run = promisify(execFile);

// Asks again and again until the answer is one; what it is, and how long that took.
export const until = async (ask, what, { ms_max = 15_000, every_ms = 50 } = {}) => {
  const began = performance.now();
  for (;;) {
    const answer = await ask();
    const took_ms = performance.now() - began;
    if (answer) return { answer, took_ms };
    assert.ok(took_ms < ms_max, `${what}: not within ${ms_max} ms`);
    await pause(every_ms);
  }
};

const freePorts = async (count) => {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
};

export class House {
  // With more variables in the process's environment.
  static async open(environment = {}) {
    const house = new House();
    house.environment = { PATH: process.env.PATH, ...environment };
    house.folder = await mkdtemp(join(tmpdir(), 'tollgate-browser-'));
    try {
      await house.#serve();
      const executablePath = process.env.TOLLGATE_CHROMIUM;
      house.chromium = await chromium.launch({ executablePath, args: ['--disable-dev-shm-usage'] });
    } catch (error) {
      await house.close();
      throw error;
    }
    return house;
  }

  async #serve() {
    const [http, dashboard, admin, metrics] = (await freePorts(4)).map((port) => `127.0.0.1:${port}`);
    this.url = `http://${dashboard}`;
    this.apiUrl = `http://${http}/v1`;
    const options = ['--data', 'data', '--listen', http, '--dashboard', dashboard, '--admin', admin, '--metrics', metrics];
    this.process = spawn(process.env.TOLLGATE_BINARY, ['quickstart', ...options], {
      cwd: this.folder,
      env: this.environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.log = '';
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => (this.log += text));
    }
    const isReady = async () => {
      assert.equal(this.process.exitCode, null, `quickstart ended:\n${this.log}`);
      return this.log.includes('Stop: Ctrl-C') && (await fetch(`http://${admin}/readyz`)).status === 200;
    };
    await until(isReady, 'quickstart is ready', { ms_max: START_MS_MAX });
    this.link = this.log.match(/dashboard.*: (http\S+)/)[1];
    this.key = this.log.match(/shown this once: (\S+)/)[1];
  }

  async close() {
    await this.chromium?.close();
    if (this.process && this.process.exitCode === null) {
      const ended = once(this.process, 'exit');
      this.process.kill('SIGTERM');
      const killed = pause(STOP_MS_MAX, 'late', { ref: false });
      if ((await Promise.race([ended, killed])) === 'late') this.process.kill('SIGKILL');
      await ended;
    }
    await rm(this.folder, { recursive: true, force: true });
  }

  // Writes more into the configuration, which is taken up when that holds.
  async configure(text, isTakenUp) {
    await appendFile(join(this.folder, 'data/tollgate.toml'), text);
    await until(isTakenUp, 'the configuration is taken up', { every_ms: 200 });
  }

  // A command of the operator's, as at a terminal.
  async command(...words) {
    const line = [...words, '--config', 'data/tollgate.toml', '--json'];
    const { stdout } = await run(process.env.TOLLGATE_BINARY, line, { cwd: this.folder, env: this.environment });
    return stdout.trim() ? JSON.parse(stdout) : undefined;
  }

  // A browser of somebody who was never here, with one page. What goes wrong on it is in `page.complaints`.
  async visitor(options = {}) {
    const context = await this.chromium.newContext({ baseURL: this.url, locale: 'en-GB', ...options });
    context.setDefaultTimeout(PAGE_MS_MAX);
    const page = await context.newPage();
    page.complaints = [];
    page.on('console', (said) => said.type() === 'error' && page.complaints.push(`console: ${said.text()}`));
    page.on('pageerror', (error) => page.complaints.push(`script: ${error}`));
    page.on('request', (request) => {
      const { origin, protocol } = new URL(request.url());
      if (protocol !== 'data:' && origin !== this.url) page.complaints.push(`another origin: ${request.url()}`);
    });
    return page;
  }

  // Who runs the house, signed in by a new link.
  async operator(options) {
    const page = await this.visitor(options);
    await takeLink(page, (await this.command('user', 'sign-in-link', 'operator@localhost')).url);
    return page;
  }

  // A customer with an account and a password, signed in.
  async customer(email, { dollars, ...options } = {}) {
    const account = await this.command('account', 'create', `Account of ${email}`, '--plan', 'free');
    if (dollars) await this.command('account', 'credit', account.id, dollars);
    await this.command('user', 'create', email, '--account', account.id);
    const page = await this.visitor(options);
    await takeInvitation(page, (await this.command('user', 'invite', email)).url);
    page.accountId = account.id;
    return page;
  }

  // A completion, streamed: its text and its last word of how it ended.
  async complete(key, model = 'demo') {
    const answer = await fetch(`${this.apiUrl}/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: 'Hello!' }] }),
    });
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.text() };
  }

  async statusOf(key) {
    const answer = await fetch(`${this.apiUrl}/models`, { headers: { authorization: `Bearer ${key}` } });
    await answer.arrayBuffer();
    return answer.status;
  }
}

// The text of a stream of events, which must have been whole.
export const textOf = (stream) => {
  const events = stream.body.split('\n\n').filter((event) => event.startsWith('data: ')).map((event) => event.slice(6));
  assert.equal(events.pop(), '[DONE]', stream.body);
  const choices = events.map((event) => JSON.parse(event)).flatMap((chunk) => chunk.choices);
  assert.equal(choices.at(-1).finish_reason, 'stop');
  return choices.map((choice) => choice.delta.content ?? '').join('');
};

export const takeLink = async (page, url) => {
  await page.goto(url);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('button', { name: 'Sign out', exact: true }).waitFor();
};

export const takeInvitation = async (page, url, password = PASSWORD) => {
  await page.goto(url);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Save and sign in' }).click();
  await page.getByRole('button', { name: 'Sign out', exact: true }).waitFor();
};

// A link of the navigation: of the customer's, unless it is to be the operators'.
export const OPERATORS = "Operator's pages";
export const go = async (page, label, navigation = 'Pages') => {
  await page.getByRole('navigation', { name: navigation, exact: true }).getByRole('link', { name: label, exact: true }).click();
};

// The figure of a card.
export const figureOf = (page, label) =>
  page.locator('.card', { has: page.getByText(label, { exact: true }) }).locator('.figure').first().innerText();

// A key of that name, made on the page; the secret, which stands there.
export const makeKey = async (page, name) => {
  await go(page, 'Keys');
  await page.getByRole('link', { name: 'New key' }).click();
  await page.getByLabel('Name').fill(name);
  await page.getByRole('button', { name: 'Make the key' }).click();
  return secretOn(page);
};

export const secretOn = async (page) => (await page.locator('#secret').innerText()).trim();

// A table's rows under its headings.
export const rowsOf = async (page, name) => {
  const region = page.getByRole('region', { name, exact: true });
  if ((await region.count()) === 0) return [];
  const heads = await region.locator('thead th').allInnerTexts();
  const rows = await region.locator('tbody tr').all();
  return Promise.all(
    rows.map(async (row) => {
      const cells = await row.locator('th, td').allInnerTexts();
      return Object.fromEntries(cells.map((cell, at) => [heads[at], cell.trim()]));
    }),
  );
};
