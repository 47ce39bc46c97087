// Java's `java.net.http.HttpClient`: what it sends to every http:// address is an offer to go on in
// HTTP/2 (`Connection: Upgrade, HTTP2-Settings`, `Upgrade: h2c`). `java JavaHttpClient.java` runs it.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import java.util.stream.Stream;

public class JavaHttpClient {
    static final String URL = System.getenv("TGI_URL");
    static final String KEY = System.getenv("TGI_API_KEY");
    static final String CHAT = "/v1/chat/completions";
    static final String QUESTION =
            """
            {"messages": [{"role": "user", "content": "What is the capital of France?"}],
             "max_tokens": 20, "temperature": 0%s}""";
    static final String GENERATE =
            """
            {"inputs": "The three primary colours are", "parameters": {"max_new_tokens": 8}}""";

    final HttpClient client;

    JavaHttpClient(HttpClient client) {
        this.client = client;
    }

    interface Check {
        void run() throws Exception;
    }

    static HttpRequest.Builder to(String route) {
        return HttpRequest.newBuilder(URI.create(URL + route))
                .timeout(Duration.ofSeconds(60))
                .header("Authorization", "Bearer " + KEY)
                .header("Content-Type", "application/json");
    }

    static HttpRequest post(String route, BodyPublisher body) {
        return to(route).POST(body).build();
    }

    static BodyPublisher whole(String body) {
        return BodyPublishers.ofString(body);
    }

    /** A body whose length is not known before: it is sent in chunks. */
    static BodyPublisher chunked(String body) {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        return BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes));
    }

    static String question(String more) {
        return QUESTION.formatted(more);
    }

    HttpResponse<String> send(HttpRequest request) throws Exception {
        return client.send(request, BodyHandlers.ofString());
    }

    static void equal(Object found, Object wanted) {
        if (!found.equals(wanted)) {
            throw new AssertionError("found " + found + ", not " + wanted);
        }
    }

    static void contains(HttpResponse<String> answer, int status, String text) {
        if (answer.statusCode() != status || !answer.body().contains(text)) {
            throw new AssertionError(
                    "found %d %s, not %d with %s".formatted(answer.statusCode(), answer.body(), status, text));
        }
    }

    void questionsAreAnswered() throws Exception {
        for (int i = 0; i < 3; i++) { // on one connection
            contains(send(post(CHAT, whole(question("")))), 200, "Paris");
            contains(send(post(CHAT, chunked(question("")))), 200, "Paris");
            contains(send(post("/generate", whole(GENERATE))), 200, "generated_text");
        }
        contains(send(to("/v1/models").GET().build()), 200, "SmolLM2");
        contains(send(to("/health").GET().build()), 200, "");
    }

    void aLargeBody() throws Exception {
        String colours = "blue ".repeat(20_000);
        String body = GENERATE.replace("8}", "1, \"truncate\": 10}").replace("The three", colours);

        contains(send(post("/generate", whole(body))), 200, "generated_text");
        contains(send(post("/generate", chunked(body))), 200, "generated_text");
        HttpRequest first = to("/generate").expectContinue(true).POST(whole(body)).build();
        contains(send(first), 200, "generated_text");
    }

    void aStream() throws Exception {
        HttpRequest request = post(CHAT, whole(question(", \"stream\": true")));
        HttpResponse<Stream<String>> answer = client.send(request, BodyHandlers.ofLines());

        equal(answer.statusCode(), 200);
        equal(answer.headers().firstValue("content-type").orElse("").startsWith("text/event-stream"), true);
        List<String> events = answer.body().filter(line -> line.startsWith("data: ")).toList();
        equal(events.get(events.size() - 1), "data: [DONE]");
        equal(String.join("", events).contains("Paris"), true);
        equal(events.size() > 5, true);
    }

    void severalAtOnce() throws Exception {
        List<CompletableFuture<HttpResponse<String>>> running =
                IntStream.range(0, 12)
                        .mapToObj(i -> client.sendAsync(post(CHAT, whole(question(""))), BodyHandlers.ofString()))
                        .toList();

        for (CompletableFuture<HttpResponse<String>> one : running) {
            contains(one.get(60, TimeUnit.SECONDS), 200, "Paris");
        }
    }

    void refusals() throws Exception {
        contains(send(post(CHAT, whole(question(", \"top_p\": 2")))), 400, "top_p");
        contains(send(post("/generate", whole("{\"inputs\": \"\"}"))), 422, "`inputs` cannot be empty");
        contains(send(post(CHAT, whole("{"))), 400, "JSON");
        String words = "word ".repeat(9000);
        contains(
                send(post(CHAT, whole(question("").replace("What", words)))), 400, "context_length_exceeded");
        contains(send(post("/none", whole("{}"))), 404, "");
        HttpRequest wrong = to(CHAT).setHeader("Authorization", "Bearer wrong").POST(whole(question(""))).build();
        contains(send(wrong), 401, "error");
        // The connection, or a new one, is good for more.
        contains(send(post(CHAT, whole(question("")))), 200, "Paris");
    }

    void whatIsCancelledMakesRoom() throws Exception {
        String story = question(", \"stream\": true, \"ignore_eos\": true").replace("20", "8000");
        for (int i = 0; i < 12; i++) { // more than the server works on at once, each for minutes
            HttpResponse<Stream<String>> answer = client.send(post(CHAT, whole(story)), BodyHandlers.ofLines());
            try (Stream<String> lines = answer.body()) {
                lines.filter(line -> line.startsWith("data: ")).findFirst().orElseThrow();
            }
        }

        contains(send(post(CHAT, whole(question("")))), 200, "Paris");
    }

    Map<String, Check> checks() {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("questions are answered", this::questionsAreAnswered);
        checks.put("a large body", this::aLargeBody);
        checks.put("a stream", this::aStream);
        checks.put("several at once", this::severalAtOnce);
        checks.put("refusals", this::refusals);
        checks.put("what is cancelled makes room for others", this::whatIsCancelledMakesRoom);
        return checks;
    }

    public static void main(String[] arguments) {
        int failed = 0;
        // As it is made by default, and as people make it who gave up on HTTP/2.
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            for (Map.Entry<String, Check> one : new JavaHttpClient(client).checks().entrySet()) {
                String name = version + ": " + one.getKey();
                try {
                    one.getValue().run();
                    System.out.println("ok      " + name);
                } catch (Throwable reason) {
                    failed++;
                    System.out.println("FAILED  " + name + ": " + reason);
                }
            }
        }
        System.exit(failed == 0 ? 0 : 1);
    }
}
