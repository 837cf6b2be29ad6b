<?php

// A front controller as Laravel, Symfony and WordPress have one: every path that is not a file ends here.

declare(strict_types=1);

$path = rawurldecode(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) ?: '/');

switch ($path) {
    case '/':
        header('Content-Type: text/plain');
        echo "front controller\n";
        break;

    case '/env':
        json(['server' => $_SERVER, 'get' => $_GET, 'post' => $_POST, 'cookie' => $_COOKIE]);
        break;

    case '/url':
        header('Content-Type: text/plain');
        echo root_url(), '/';
        break;

    case '/echo':
        echo_body();
        break;

    case '/big':
        big((int) ($_GET['bytes'] ?? 0));
        break;

    case '/sse':
        server_sent_events();
        break;

    case '/headers':
        for ($i = 0; $i < 64; $i++) {
            header(sprintf('X-Filler-%02d: %s', $i, str_repeat('x', 1000)));
        }
        echo "64 fields\n";
        break;

    case '/publish':
        $redis = new Redis();
        $redis->connect(getenv('REDIS_SOCKET'));
        $message = json_encode(['event' => $_GET['event'] ?? 'news', 'data' => ['msg' => $_GET['msg'] ?? '']]);
        json(['receivers' => $redis->publish($_GET['channel'] ?? 'news', $message)]);
        break;

    case '/accel':
        header('Content-Type: application/octet-stream');
        header('Content-Disposition: attachment; filename="report.txt"');
        header('X-Accel-Redirect: ' . ($_GET['to'] ?? '/internal/report.txt'));
        echo 'this body must be replaced';
        break;

    case '/stderr':
        error_log('a line for the error log: ' . ($_GET['text'] ?? ''));
        echo "told\n";
        break;

    case '/status':
        http_response_code((int) ($_GET['code'] ?? 200));
        echo 'status ', (int) ($_GET['code'] ?? 200), "\n";
        break;

    case '/cookies':
        setcookie('one', '1', ['httponly' => true]);
        setcookie('two', '2', ['secure' => true]);
        echo "two cookies\n";
        break;

    case '/location':
        // PHP itself turns this into 302.
        header('Location: /elsewhere?x=1');
        break;

    case '/slow':
        usleep(1000 * (int) ($_GET['ms'] ?? 0));
        echo "slept\n";
        break;

    case '/page':
        page();
        break;

    default:
        http_response_code(str_starts_with($path, '/missing') ? 404 : 200);
        json(['path' => $path, 'query' => $_SERVER['QUERY_STRING'] ?? null]);
}

function json(array $value): void
{
    header('Content-Type: application/json');
    echo json_encode($value, JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE);
}

// What Symfony's Request::getSchemeAndHttpHost() does, and with it Laravel's url('/').
function root_url(): string
{
    $https = $_SERVER['HTTPS'] ?? '';
    $scheme = $https !== '' && strtolower($https) !== 'off' ? 'https' : 'http';
    $host = $_SERVER['HTTP_HOST'] ?? '';
    if ($host === '') {
        $host = $_SERVER['SERVER_NAME'] ?? ($_SERVER['SERVER_ADDR'] ?? '');
    }
    return $scheme . '://' . $host;
}

// Reads the body as it comes, whatever its size, and never holds it whole.
function echo_body(): void
{
    $hash = hash_init('sha256');
    $length = 0;
    $in = fopen('php://input', 'rb');
    while (!feof($in)) {
        $piece = fread($in, 65536);
        if ($piece === false) {
            break;
        }
        $length += strlen($piece);
        hash_update($hash, $piece);
    }
    json([
        'length' => $length,
        'sha256' => hash_final($hash),
        'content_length' => $_SERVER['CONTENT_LENGTH'] ?? null,
        'content_type' => $_SERVER['CONTENT_TYPE'] ?? null,
        'method' => $_SERVER['REQUEST_METHOD'],
    ]);
}

function big(int $bytes): void
{
    header('Content-Type: application/octet-stream');
    if (isset($_GET['length'])) {
        header('Content-Length: ' . $bytes);
    }
    while (ob_get_level() > 0) {
        ob_end_clean();
    }
    $piece = str_repeat("0123456789abcde\n", 4096);
    for (; $bytes > 0; $bytes -= strlen($piece)) {
        echo $bytes < strlen($piece) ? substr($piece, 0, $bytes) : $piece;
        flush();
    }
}

function server_sent_events(): void
{
    header('Content-Type: text/event-stream');
    header('Cache-Control: no-cache');
    while (ob_get_level() > 0) {
        ob_end_clean();
    }
    for ($i = 1; $i <= 5; $i++) {
        echo "id: $i\ndata: event $i\n\n";
        flush();
        if ($i < 5) {
            usleep(200_000);
        }
    }
}

function page(): void
{
    header('Content-Type: text/html; charset=utf-8');
    echo <<<'HTML'
        <!doctype html>
        <html lang="en">
        <meta charset="utf-8">
        <title>A page with a live socket</title>
        <style>
          body { font: 1.1rem/1.6 sans-serif; margin: 3rem auto; max-width: 40rem }
          li { list-style: square }
        </style>
        <h1>A page with a live socket</h1>
        <p>Socket: <b id="state">connecting</b>, by <b id="transport">?</b></p>
        <ul id="events"></ul>
        <script src="/assets/socket.io.min.js"></script>
        <script>
          const socket = io({ transports: (new URLSearchParams(location.search).get('transports') || 'polling,websocket').split(',') });
          const show = (id, text) => { document.getElementById(id).textContent = text; };
          socket.on('connect', () => {
            show('state', 'open');
            show('transport', socket.io.engine.transport.name);
            socket.io.engine.on('upgrade', () => show('transport', socket.io.engine.transport.name));
          });
          socket.on('disconnect', (why) => show('state', 'closed: ' + why));
          socket.on('connect_error', (why) => show('state', 'error: ' + why.message));
          socket.on('news', (data) => {
            const item = document.createElement('li');
            item.textContent = data.msg;
            document.getElementById('events').append(item);
          });
        </script>
        </html>

        HTML;
}
