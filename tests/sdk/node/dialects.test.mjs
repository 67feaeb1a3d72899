// OpenAI's own Node client against models of Anthropic and Google, which it cannot tell from OpenAI's.
//
// Runs under tests/sdk/stage.py. The scripted providers refuse what real ones refuse, above all a history whose signed
// thoughts are not what they sent.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const baseURL = process.env.TOLLGATE_BASE_URL;
const keys = JSON.parse(process.env.TOLLGATE_KEYS);
const parameters = { type: 'object', properties: { city: { type: 'string' } } };
const tools = ['get_weather', 'get_time'].map((name) => ({ type: 'function', function: { name, parameters } }));
const thoughts = ['Which city?\nThe "first" one.', 'Now the time… ⏱', 'That is enough to answer.'];
const schema = {
  type: 'object',
  properties: { name: { type: 'string' }, born: { type: 'integer' } },
  required: ['name', 'born'],
  additionalProperties: false,
};
const png = Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), Buffer.alloc(25_600, 7)]);

const chat = new OpenAI({ baseURL, apiKey: keys.good, maxRetries: 0 }).chat.completions;
const say = (content) => [{ role: 'user', content }];
const result = (call, content) => ({ role: 'tool', tool_call_id: call.id, content });

// A completion, whole or added up from a stream by the SDK's own helper.
const ask = (model, messages, stream, more = {}) =>
  stream
    ? chat.stream({ model, messages, stream_options: { include_usage: true }, ...more }).finalChatCompletion()
    : chat.create({ model, messages, ...more });

const each = (name, models, body) => {
  for (const model of models) {
    for (const stream of [false, true]) test(`${name}: ${model}, ${stream ? 'streamed' : 'whole'}`, () => body(model, stream));
  }
};

each('two tools and their results', ['claude', 'gemini'], async (model, stream) => {
  const answer = await ask(model, say('Weather and time?'), stream, { tools });
  const { message, finish_reason } = answer.choices[0];
  assert.deepEqual([message.content, finish_reason], ['Let me see.', 'tool_calls']);
  assert.deepEqual(message.tool_calls.map((call) => call.function.name), ['get_weather', 'get_time']);
  for (const call of message.tool_calls) assert.deepEqual(JSON.parse(call.function.arguments), { city: 'Malmö' });
  assert.equal(answer.usage.total_tokens, 17);
  const results = [result(message.tool_calls[0], '14 °C'), result(message.tool_calls[1], 'noon')];
  const after = await ask(model, [...say('Weather and time?'), message, ...results], stream, { tools });
  assert.equal(after.choices[0].message.content, 'You sent: 14 °C | noon');
});

each('an image', ['claude', 'gemini'], async (model, stream) => {
  const url = `data:image/png;base64,${png.toString('base64')}`;
  const content = [{ type: 'text', text: 'See: ' }, { type: 'image_url', image_url: { url } }];
  const answer = await ask(model, say(content), stream);
  assert.equal(answer.choices[0].message.content, 'See: [image/png 25608 bytes]');
});

each('a schema, parsed by the helper', ['claude', 'claude-older', 'gemini'], async (model, stream) => {
  const response_format = { type: 'json_schema', json_schema: { name: 'person', strict: true, schema } };
  const asked = { model, messages: say('Who?'), response_format };
  const answer = stream ? await chat.stream(asked).finalChatCompletion() : await chat.parse(asked);
  assert.deepEqual(answer.choices[0].message.parsed, { name: 'Ada', born: 1815 });
  assert.equal(answer.choices[0].finish_reason, 'stop');
});

each('a loop of three turns with its signatures', ['claude', 'gemini'], async (model, stream) => {
  const turns = say('Think of the weather.');
  let message;
  for (const thought of thoughts) {
    ({ message } = (await ask(model, turns, stream, { tools, reasoning_effort: 'high' })).choices[0]);
    // This helper adds up no field that it does not know; it has the last piece of what was thought.
    assert.ok(stream ? thought.endsWith(message.reasoning_content) : thought === message.reasoning_content);
    turns.push(message, ...(message.tool_calls ?? []).map((call) => result(call, '14 °C')));
  }
  assert.equal(message.content, 'Signed, all of it.');
});
