<?php

return [
    'redis' => [
        'client' => 'phpredis',
        'options' => ['prefix' => 'laravel_database_'],
        'default' => ['host' => getenv('REDIS_SOCKET'), 'port' => 0, 'database' => 0],
    ],
];
