// npm's `ai` with two providers: `@ai-sdk/openai-compatible`, and `@ai-sdk/openai` for chats.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';

const { TGI_URL, TGI_API_KEY } = process.env;
const prompt = 'What is the capital of France?';
const schema = z.object({
  city: z.enum(['Paris', 'London']),
  unit: z.enum(['celsius', 'fahrenheit']),
});

const PROVIDERS = {
  'openai-compatible': (apiKey = TGI_API_KEY) =>
    createOpenAICompatible({
      name: 'tgi',
      baseURL: `${TGI_URL}/v1`,
      apiKey,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })('tgi'),
  openai: (apiKey = TGI_API_KEY) => createOpenAI({ baseURL: `${TGI_URL}/v1`, apiKey }).chat('tgi'),
};

/** A tool, and the calls that it has had. */
function weather() {
  const calls = [];
  const execute = async (given) => {
    calls.push(given);
    return { weather: 'sunny' };
  };
  const description = 'The weather of a city.';
  return { calls, tools: { get_weather: tool({ description, inputSchema: schema, execute }) } };
}

async function refusal(run) {
  try {
    await run();
  } catch (error) {
    return error;
  }
  assert.fail('this was not refused');
}

/** What a stream says of an error; the library throws none. */
async function refusalOfStream(options) {
  let found;
  const stream = streamText({ ...options, onError: ({ error }) => (found = error) });
  await stream.consumeStream();
  return found;
}

for (const [name, provider] of Object.entries(PROVIDERS)) {
  const model = provider();
  /** Options of a greedy generation. */
  const asked = (more = {}) => ({
    model,
    prompt,
    maxOutputTokens: 60,
    temperature: 0,
    maxRetries: 0,
    ...more,
  });

  test(`${name}: a stream says what the whole text says`, async () => {
    const whole = await generateText(asked({ maxOutputTokens: 20 }));
    const stream = streamText(asked({ maxOutputTokens: 20 }));
    let streamed = '';
    for await (const piece of stream.textStream) streamed += piece;

    assert.match(whole.text, /Paris/);
    assert.equal(streamed, whole.text);
    assert.equal(whole.finishReason, 'stop');
    assert.equal(await stream.finishReason, 'stop');
    assert(whole.usage.outputTokens > 0);
    const { inputTokens, outputTokens } = await stream.usage;
    assert.deepEqual([inputTokens, outputTokens], [whole.usage.inputTokens, whole.usage.outputTokens]);
  });

  test(`${name}: parameters of sampling`, async () => {
    const sampled = asked({
      maxOutputTokens: 12,
      temperature: 1.5,
      topP: 0.9,
      presencePenalty: 0.5,
      frequencyPenalty: 0.5,
      seed: 7,
      stopSequences: ['\n'],
    });

    assert.equal((await generateText(sampled)).text, (await generateText(sampled)).text);
  });

  for (const toolChoice of ['required', { type: 'tool', toolName: 'get_weather' }]) {
    test(`${name}: a forced call, ${toolChoice.type ?? toolChoice}`, async () => {
      const whole = weather();
      await generateText(asked({ tools: whole.tools, toolChoice }));
      const streamed = weather();
      const stream = streamText(asked({ tools: streamed.tools, toolChoice }));
      await stream.consumeStream();

      assert(whole.calls.length > 0);
      whole.calls.forEach((call) => schema.parse(call));
      assert.deepEqual(streamed.calls, whole.calls);
      assert.equal(await stream.finishReason, 'tool-calls');
    });
  }

  test(`${name}: the result of a call is given to the model`, async () => {
    const { calls, tools } = weather();
    const { steps, text } = await generateText(
      asked({
        tools,
        maxOutputTokens: 40,
        stopWhen: stepCountIs(2),
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
      }),
    );

    assert(calls.length > 0);
    assert.equal(steps.length, 2);
    assert(text);
  });

  test(`${name}: an object`, async () => {
    const whole = await generateObject(asked({ schema }));
    const stream = streamObject(asked({ schema }));
    const partial = [];
    for await (const one of stream.partialObjectStream) partial.push(one);

    schema.parse(whole.object);
    assert.deepEqual(await stream.object, whole.object);
    assert.deepEqual(partial.at(-1), whole.object);
  });

  test(`${name}: an array, a choice, and JSON without a schema`, async () => {
    // What is begun is closed before the tokens run out.
    const few = { maxOutputTokens: 32, prompt: 'Answer in JSON: the capital of France.' };
    const array = { output: 'array', schema: z.enum(['red', 'blue']) };
    const { object } = await generateObject(asked({ ...few, ...array }));
    const choice = await generateObject(asked({ output: 'enum', enum: ['Paris', 'London'] }));
    const any = await generateObject(asked({ ...few, output: 'no-schema' }));

    assert(object.every((one) => ['red', 'blue'].includes(one)));
    assert(['Paris', 'London'].includes(choice.object));
    assert.equal(typeof any.object, 'object');
  });

  test(`${name}: tools, and an object as the answer`, async () => {
    const { calls, tools } = weather();
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' });
    const { output } = await generateText(
      asked({ tools, output: Output.object({ schema }), stopWhen: stepCountIs(2), prepareStep }),
    );

    assert(calls.length > 0);
    schema.parse(output);
  });

  test(`${name}: a model that may call tools or answer in a form`, async () => {
    const { tools } = weather();
    const result = await generateText(asked({ tools, output: Output.object({ schema }) }));

    // A call that the model was free to make is its own: its arguments may break the schema.
    if (result.finishReason === 'tool-calls') assert.equal(result.toolCalls[0].toolName, 'get_weather');
    else schema.parse(result.output);
  });

  for (const [kind, ask] of Object.entries({
    text: (options) => refusal(() => generateText(options)),
    stream: refusalOfStream,
  })) {
    test(`${name}: why a ${kind} is refused`, async () => {
      const error = await ask(asked({ temperature: undefined, topP: 2 }));

      assert(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      assert.equal(error.isRetryable, false);
      assert.match(error.message, /top_p/);
    });

    test(`${name}: a ${kind} of a prompt that is too long`, async () => {
      const error = await ask(asked({ prompt: 'word '.repeat(9000) }));

      assert.equal(error.statusCode, 400);
      assert.match(error.message, /8192|8191/);
      assert.equal(error.data.error.code, 'context_length_exceeded');
    });

    test(`${name}: a ${kind} with the wrong key`, async () => {
      const error = await ask(asked({ model: provider('wrong') }));

      assert.equal(error.statusCode, 401);
      assert.notEqual(error.message, 'Unauthorized');
    });
  }

  test(`${name}: what is cancelled makes room for others`, async () => {
    // More than the server works on at once, each for minutes.
    for (let i = 0; i < 12; i++) {
      const controller = new AbortController();
      const story = asked({ prompt: 'Tell a very long story.', maxOutputTokens: 8000, temperature: 1.5 });
      const stream = streamText({ ...story, seed: i, abortSignal: controller.signal });
      for await (const part of stream.fullStream) if (part.type === 'text-delta') controller.abort();
    }

    const abortSignal = AbortSignal.timeout(20_000);
    const { usage } = await generateText(asked({ maxOutputTokens: 2, abortSignal }));
    assert.equal(usage.outputTokens, 2);
  });
}

test('JSON for a model that is not known to follow schemas', async () => {
  const model = createOpenAICompatible({ name: 'tgi', baseURL: `${TGI_URL}/v1`, apiKey: TGI_API_KEY })('tgi');
  const question = { prompt: 'Answer in JSON: the capital of France.', maxOutputTokens: 32 };
  const { object } = await generateObject({
    ...question,
    model,
    schema: z.looseObject({}),
    temperature: 0,
    maxRetries: 0,
  });

  assert.equal(typeof object, 'object');
});

test('completions', async () => {
  const provider = createOpenAICompatible({ name: 'tgi', baseURL: `${TGI_URL}/v1`, apiKey: TGI_API_KEY });
  const options = { model: provider.completionModel('tgi'), prompt: 'The sea is', maxOutputTokens: 6 };
  const whole = await generateText({ ...options, temperature: 0, maxRetries: 0 });
  const stream = streamText({ ...options, temperature: 0, maxRetries: 0 });

  assert(whole.text);
  assert.equal(await stream.text, whole.text);
});
