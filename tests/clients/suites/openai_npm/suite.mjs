// npm's `openai`, as applications in JavaScript use it.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const { TGI_URL, TGI_API_KEY } = process.env;
const client = connected(TGI_API_KEY);
const messages = [{ role: 'user', content: 'What is the capital of France?' }];
const parameters = z.object({
  city: z.enum(['Paris', 'London']),
  unit: z.enum(['celsius', 'fahrenheit']),
});
const tools = [zodFunction({ name: 'get_weather', description: 'Of a city.', parameters })];
const named = { type: 'function', function: { name: 'get_weather' } };

function connected(apiKey) {
  return new OpenAI({ baseURL: `${TGI_URL}/v1`, apiKey, maxRetries: 0, timeout: 120_000 });
}

/** Arguments of a greedy chat. */
function asked(more = {}) {
  return { model: 'tgi', messages, max_tokens: 40, temperature: 0, ...more };
}

async function all(stream) {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
}

function text(chunks) {
  return chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
}

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail('this was not refused');
}

test('models', async () => {
  const [model] = await all(client.models.list());

  assert.equal(model.id, 'HuggingFaceTB/SmolLM2-135M-Instruct');
  assert.equal((await client.models.retrieve(model.id)).id, model.id);
  assert((await refusal(client.models.retrieve('none'))) instanceof OpenAI.NotFoundError);
});

test('a stream says what the whole answer says', async () => {
  const whole = await client.chat.completions.create(asked());
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await client.chat.completions.create(asked(options)));

  assert.match(whole.choices[0].message.content, /Paris/);
  assert.equal(whole.choices[0].finish_reason, 'stop');
  assert.equal(text(chunks), whole.choices[0].message.content);
  // Of the prompt, the second time, more may come from the cache.
  const { prompt_tokens_details: cached, ...usage } = chunks.at(-1).usage;
  const { prompt_tokens_details: before, ...expected } = whole.usage;
  assert.deepEqual(usage, expected);
  assert(cached.cached_tokens >= before.cached_tokens);
});

test("the library's own way to put a stream together", async () => {
  const stream = client.chat.completions.stream(asked());
  let heard = '';
  stream.on('content', (piece) => (heard += piece));
  const final = await stream.finalChatCompletion();

  assert.equal(final.choices[0].message.content, heard);
  assert.match(heard, /Paris/);
});

test('a stream goes on to a browser', async () => {
  const stream = await client.chat.completions.create(asked({ stream: true }));
  const body = await new Response(stream.toReadableStream()).text();

  const chunks = body.trim().split('\n').map(JSON.parse);
  assert.match(text(chunks), /Paris/);
});

test('an answer in the form of a schema', async () => {
  const response_format = zodResponseFormat(parameters, 'weather');
  const body = asked({ response_format, max_tokens: 80 });
  const whole = await client.chat.completions.parse(body);
  const stream = client.chat.completions.stream(body);
  const streamed = await stream.finalChatCompletion();

  assert.deepEqual(parameters.parse(whole.choices[0].message.parsed), streamed.choices[0].message.parsed);
});

for (const [name, tool_choice] of Object.entries({
  required: 'required',
  named,
  allowed: { type: 'allowed_tools', allowed_tools: { mode: 'required', tools: [named] } },
})) {
  test(`a forced call: ${name}`, async () => {
    const body = asked({ tools, tool_choice, parallel_tool_calls: false, max_tokens: 80 });
    const whole = await client.chat.completions.create(body);
    const stream = client.chat.completions.stream(body);
    const streamed = await stream.finalChatCompletion();

    assert.equal(whole.choices[0].finish_reason, 'tool_calls');
    const [call] = whole.choices[0].message.tool_calls;
    parameters.parse(JSON.parse(call.function.arguments));
    const [other] = streamed.choices[0].message.tool_calls;
    assert.deepEqual([other.type, other.function.name], ['function', 'get_weather']);
    assert.equal(other.function.arguments, call.function.arguments);
  });
}

for (const stream of [false, true]) {
  test(`the library calls the function itself, ${stream ? 'from a stream' : 'from an answer'}`, async () => {
    const calls = [];
    const get_weather = zodFunction({
      name: 'get_weather',
      parameters,
      function: (given) => {
        calls.push(given);
        return 'Sunny.';
      },
    });
    const body = asked({ tools: [get_weather], tool_choice: named, max_tokens: 80, stream });
    const runner = client.chat.completions.runTools(body);
    await runner.done();

    parameters.parse(calls[0]);
    assert.equal(runner.messages.at(-1).content, 'Sunny.');
    // The conversation as the library kept it is one that can go on.
    const next = asked({ messages: runner.messages, tools, tool_choice: 'none', max_tokens: 8 });
    assert((await client.chat.completions.create(next)).choices[0].message.content);
  });
}

test('tools that may be called beside a form of the answer', async () => {
  const response_format = zodResponseFormat(parameters, 'weather');
  const body = asked({ tools, response_format, max_tokens: 80 });
  const { message } = (await client.chat.completions.parse(body)).choices[0];

  if (message.tool_calls?.length) assert.equal(message.tool_calls[0].function.name, 'get_weather');
  else parameters.parse(message.parsed);
});

test('completions', async () => {
  const body = { model: 'tgi', prompt: ['The sea is', 'The sky is'], max_tokens: 6, temperature: 0 };
  const whole = await client.completions.create(body);
  const chunks = await all(await client.completions.create({ ...body, stream: true }));

  const texts = ['', ''];
  for (const chunk of chunks) for (const one of chunk.choices) texts[one.index] += one.text;
  assert.deepEqual(
    texts,
    whole.choices.map((choice) => choice.text),
  );
});

for (const stream of [false, true]) {
  const kind = stream ? 'a stream' : 'an answer';

  test(`why ${kind} is refused`, async () => {
    const wrong = asked({ stream, top_p: 2 });
    const error = await refusal(client.chat.completions.create(wrong));

    assert(error instanceof OpenAI.BadRequestError);
    assert.match(error.error.message, /top_p/);
    assert.match(error.message, /top_p/);
  });

  test(`${kind} of a prompt that is too long`, async () => {
    const long = [{ role: 'user', content: 'word '.repeat(9000) }];
    const error = await refusal(client.chat.completions.create(asked({ stream, messages: long })));

    assert(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, 'context_length_exceeded');
    assert.match(error.message, /8192|8191/);
  });

  test(`${kind} with the wrong key`, async () => {
    const error = await refusal(connected('wrong').chat.completions.create(asked({ stream })));

    assert(error instanceof OpenAI.AuthenticationError);
    assert.doesNotMatch(error.message, /no body/);
  });
}

test('a route that is not there', async () => {
  const error = await refusal(client.embeddings.create({ model: 'tgi', input: 'a' }));

  assert(error instanceof OpenAI.NotFoundError);
  assert.doesNotMatch(error.message, /no body/);
});

test('what is cancelled makes room for others', async () => {
  // More than the server works on at once, each for minutes.
  for (let i = 0; i < 12; i++) {
    const controller = new AbortController();
    const body = asked({ stream: true, max_tokens: 8000, stop: null, ignore_eos: true });
    const stream = await client.chat.completions.create(body, { signal: controller.signal });
    for await (const _ of stream) controller.abort();
  }

  const answer = await client.chat.completions.create(asked({ max_tokens: 2 }), { timeout: 20_000 });
  assert.equal(answer.usage.completion_tokens, 2);
});

test('several questions at once', async () => {
  // Fewer than the server works on at once: none may wait there.
  const bodies = Array.from({ length: 6 }, () => asked({ max_tokens: 4 }));
  const answers = await Promise.all(bodies.map((body) => client.chat.completions.create(body)));

  const texts = new Set(answers.map((answer) => answer.choices[0].message.content));
  assert.equal(texts.size, 1);
});
