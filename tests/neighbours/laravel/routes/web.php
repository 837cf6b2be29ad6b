<?php

use App\OrderShipped;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Route;

Route::get('/', function () {
    return response(url('/'))->header('Content-Type', 'text/plain');
});

Route::get('/links', function (Request $request) {
    return [
        'url' => url('/'),
        'asset' => asset('assets/app.css'),
        'route' => route('order', ['id' => 7]),
        'secure' => $request->secure(),
        'ip' => $request->ip(),
        'host' => $request->getHttpHost(),
        'port' => $request->getPort(),
        'full' => $request->fullUrl(),
    ];
});

Route::get('/orders/{id}', function ($id) {
    return "order $id";
})->name('order');

Route::get('/go', function () {
    return redirect('/orders/7');
});

Route::post('/upload', function (Request $request) {
    $file = $request->file('file');

    return ['name' => $file->getClientOriginalName(), 'size' => $file->getSize(), 'note' => $request->input('note')];
});

Route::get('/ship/{order}', function ($order) {
    event(new OrderShipped($order));

    return ['shipped' => $order];
});
