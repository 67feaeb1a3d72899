// OpenAI's own Node client against the relay: everything that a program does with it, by its own classes.
//
// Runs under tests/sdk/stage.py, which starts the relay and sets TOLLGATE_BASE_URL and TOLLGATE_KEYS.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const baseURL = process.env.TOLLGATE_BASE_URL;
const keys = JSON.parse(process.env.TOLLGATE_KEYS);
const model = 'test-model';
const slashed = 'vendor/family/model-1';
const text = 'Hello there, friend.';
const parameters = { type: 'object', properties: { city: { type: 'string' } } };
const tools = ['get_weather', 'get_time'].map((name) => ({ type: 'function', function: { name, parameters } }));

const client = (key = 'good', options = {}) => new OpenAI({ baseURL, apiKey: keys[key] ?? key, ...options });
const say = (content) => [{ role: 'user', content }];

const collect = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

test('chat', async () => {
  const answer = await client().chat.completions.create({ model, messages: say('Hi') });
  assert.equal(answer.choices[0].message.content, text);
  assert.equal(answer.usage.total_tokens, 17);
  assert.ok(answer._request_id);
});

test('stream', async () => {
  const chunks = await collect(await client().chat.completions.create({ model, messages: say('Hi'), stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), text);
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  assert.ok(chunks.every((chunk) => !chunk.usage), 'nobody asked for usage');
});

test('stream with usage', async () => {
  const stream_options = { include_usage: true };
  const stream = await client().chat.completions.create({ model, messages: say('Hi'), stream: true, stream_options });
  const last = (await collect(stream)).at(-1);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.total_tokens, 17);
});

test('streams at once', async () => {
  const one = client();
  const ask = async () => one.chat.completions.stream({ model, messages: say('Hi') }).finalContent();
  assert.deepEqual(await Promise.all(Array.from({ length: 20 }, ask)), Array(20).fill(text));
});

test('a stream that is left early', async () => {
  const stream = await client().chat.completions.create({ model, messages: say('Hi'), stream: true });
  for await (const _ of stream) break;
  const answer = await client().chat.completions.create({ model, messages: say('Hi') });
  assert.equal(answer.choices[0].message.content, text);
});

test('tools', async () => {
  const answer = await client().chat.completions.create({ model, messages: say('Weather?'), tools });
  const { message, finish_reason } = answer.choices[0];
  assert.equal(finish_reason, 'tool_calls');
  assert.deepEqual(message.tool_calls.map((call) => call.function.name), ['get_weather', 'get_time']);
  const results = message.tool_calls.map((call) => ({ role: 'tool', tool_call_id: call.id, content: '14 °C' }));
  const messages = [...say('Weather?'), message, ...results];
  const after = await client().chat.completions.create({ model, messages, tools });
  assert.equal(after.choices[0].message.content, 'You sent: 14 °C');
});

test('tools in a stream', async () => {
  const stream = client().chat.completions.stream({ model, messages: say('Weather?'), tools });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  assert.deepEqual(message.tool_calls.map((call) => call.function.name), ['get_weather', 'get_time']);
  assert.deepEqual(JSON.parse(message.tool_calls[1].function.arguments), { city: 'Malmö' });
});

test('images as data URIs', async () => {
  for (const size of [100, 3_000_000]) {
    const url = `data:image/png;base64,${Buffer.alloc(size).toString('base64')}`;
    const content = [{ type: 'text', text: 'See: ' }, { type: 'image_url', image_url: { url } }];
    const answer = await client().chat.completions.create({ model, messages: say(content) });
    assert.equal(answer.choices[0].message.content, `You sent: See: [data:image/png;base64 ${size} bytes]`);
  }
});

test('n', async () => {
  const answer = await client().chat.completions.create({ model, messages: say('Hi'), n: 3 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  const texts = ['', '', ''];
  for await (const chunk of await client().chat.completions.create({ model, messages: say('Hi'), n: 3, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? '';
  }
  assert.deepEqual(texts, [text, text, text]);
});

test('logprobs', async () => {
  const asked = { model, messages: say('Hi'), logprobs: true, top_logprobs: 2 };
  const answer = await client().chat.completions.create(asked);
  assert.deepEqual(answer.choices[0].logprobs.content.map((token) => token.logprob), [-0.25, -0.25, -0.25, -0.25]);
  const chunks = await collect(await client().chat.completions.create({ ...asked, stream: true }));
  const tokens = chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
  assert.equal(tokens.map((token) => token.token).join(''), text);
});

test('models', async () => {
  const ids = async (key) => (await client(key).models.list()).data.map((each) => each.id);
  assert.deepEqual(await ids('good'), [model, slashed, 'claude', 'claude-older', 'gemini']);
  assert.deepEqual(await ids('narrow'), [slashed]);
  const one = await client().models.retrieve(slashed);
  assert.equal(one.id, slashed);
  assert.equal(one.context_window, 128_000);
});

// Asks, and asserts the SDK's own class, the status and code, and how many requests it took, retries included.
const fails = async (kind, status, code, { key = 'good', requests = 1, maxRetries = 2, ...asked } = {}) => {
  let count = 0;
  const counting = (...request) => {
    count += 1;
    return fetch(...request);
  };
  const one = client(key, { fetch: counting, maxRetries });
  const error = await one.chat.completions.create({ model, messages: say('Hi'), ...asked }).then(assert.fail, (reason) => reason);
  assert.equal(error.constructor, kind, String(error));
  assert.equal(error.status, status);
  assert.equal(error.code, code);
  assert.ok(error.requestID);
  assert.equal(count, requests, 'requests sent, retries included');
  return error;
};

test('401 is AuthenticationError, and is not retried', async () => {
  for (const key of ['revoked', 'tg_live_nonsense', 'sk-of-somebody-else']) {
    await fails(OpenAI.AuthenticationError, 401, 'invalid_api_key', { key });
  }
});

test('402 is APIError, and is not retried', async () => {
  await fails(OpenAI.APIError, 402, 'insufficient_credits', { key: 'poor' });
});

test('403 is PermissionDeniedError', async () => {
  await fails(OpenAI.PermissionDeniedError, 403, 'model_not_allowed', { key: 'narrow' });
});

test('404 is NotFoundError, and is not retried', async () => {
  await fails(OpenAI.NotFoundError, 404, 'model_not_found', { model: 'gpt-nonesuch' });
  const missing = await client().models.retrieve('no/such/model').then(assert.fail, (reason) => reason);
  assert.equal(missing.constructor, OpenAI.NotFoundError);
});

test('400 is BadRequestError, the relay\'s own and the provider\'s', async () => {
  const own = await fails(OpenAI.BadRequestError, 400, 'invalid_value', { messages: [] });
  assert.equal(own.param, 'messages');
  await fails(OpenAI.BadRequestError, 400, 'scripted', { messages: say('fail:400') });
});

test('429 is RateLimitError', async () => {
  const error = await fails(OpenAI.RateLimitError, 429, 'rate_limit_exceeded', { key: 'spent', maxRetries: 0 });
  assert.ok(Number(error.headers.get('retry-after')) <= 60);
});

test('502 is InternalServerError, and is retried', async () => {
  const asked = { messages: say('fail:500'), requests: 2, maxRetries: 1 };
  await fails(OpenAI.InternalServerError, 502, 'upstream_error', asked);
});

test('a stream that breaks off throws', async () => {
  const stream = await client().chat.completions.create({ model, messages: say('break'), stream: true });
  const error = await collect(stream).then(assert.fail, (reason) => reason);
  assert.ok(error instanceof OpenAI.APIError, String(error));
  assert.equal(error.code, 'upstream_truncated');
});
