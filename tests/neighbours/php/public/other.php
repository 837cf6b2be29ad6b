<?php
// A script beside the front controller. With `scripts = "index"` it neither runs nor shows its source.
$secret = 'SOURCE-MUST-NOT-LEAK';
echo 'other.php ran with path info ', $_SERVER['PATH_INFO'] ?? '(none)', "\n";
