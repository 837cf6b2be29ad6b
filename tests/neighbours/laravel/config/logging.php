<?php

return [
    'default' => 'stderr',
    'channels' => ['stderr' => ['driver' => 'errorlog', 'level' => 'debug']],
];
