//! `doorward`: from the arguments to a command. Prints what went wrong; the only file that ends the process.

use std::collections::BTreeSet;
use std::ffi::c_uint;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio_util::sync::CancellationToken;

use doorward::admin::control::{self, ControlError, Request};
use doorward::admin::sockets::Selection;
use doorward::admin::sockets::ask::{self, Closing, Shown};
use doorward::admin::upstreams;
use doorward::args::{Arguments, Cert, Command, DEFAULT_CONFIG, SocketFilter, Sockets, SocketsCommand};
use doorward::config::{self, Config};
use doorward::demo::{self, DemoBackEnds};
use doorward::doctor::{self, Severity};
use doorward::run::source::Source;
use doorward::run::{automatic, explain, privilege, start};
use doorward::trust;

/// jemalloc gives the memory of a crowd that has left back to the system; glibc's malloc keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads when it starts: unused pages go back after a second, and threads share one arena unless they take
/// one of their own (jemalloc(3), TUNING). With one for each thread that ever runs, an idle process holds 0.6 MiB more.
#[allow(unsafe_code, reason = "jemalloc is configured before main through a symbol of this name, and no other way")]
// SAFETY: the name is jemalloc's for a `const char *`; the value is a thin pointer to a string that ends in NUL.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 47] = b"dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:1\0";

/// Threads of jemalloc's own give unused pages back, so that an idle process does, too. They are started by this call and
/// not before main: what a thread is forbidden, only those that it starts later are forbidden with it. Where jemalloc
/// has no threads (musl), pages go back with the next allocation.
fn start_allocator_threads() {
    let mut on = true;
    #[allow(unsafe_code, reason = "jemalloc is told by mallctl(3), and no other way")]
    // SAFETY: the name ends in NUL and is of a `bool` (jemalloc(3), background_thread), which `on` is; nothing is read.
    let _ = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"background_thread".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut on).cast(),
            size_of::<bool>(),
        )
    };
}

/// Workers share nothing on the path of a request: each takes an arena of its own for its thread. Where there is none to
/// be had they share that of all others.
fn take_arena() {
    let mut arena: c_uint = 0;
    let mut length = size_of::<c_uint>();
    #[allow(unsafe_code, reason = "jemalloc is told by mallctl(3), and no other way")]
    // SAFETY: the names end in NUL and are of an `unsigned` (jemalloc(3), arenas.create and thread.arena), which `arena` is;
    // `length` is its size.
    let _ = unsafe {
        let made = tikv_jemalloc_sys::mallctl(
            c"arenas.create".as_ptr(),
            (&raw mut arena).cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        );
        made == 0
            && tikv_jemalloc_sys::mallctl(
                c"thread.arena".as_ptr(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                (&raw mut arena).cast(),
                length,
            ) == 0
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let file = arguments.config.as_path();
    match arguments.command() {
        Some(Command::Run(options)) => {
            finish(start::run(Source::File(file.to_owned()), options.watch, take_arena, start_allocator_threads))
        }
        Some(Command::Check(options)) => check(file, options.offline),
        Some(Command::Reload) => ask(file, Request::Reload, "\nthe old configuration stays in force"),
        Some(Command::Cert(Cert::List)) => list_certificates(file),
        Some(Command::Cert(Cert::Renew(which))) => ask(file, Request::Renew(&which.name), ""),
        Some(Command::Cert(Cert::Test(which))) => ask(file, Request::Test(&which.name), ""),
        Some(Command::Sockets(options)) => sockets(file, *options),
        Some(Command::Upstreams(options)) => list_upstreams(file, options.json),
        Some(Command::Config) => show(file),
        Some(Command::Explain(asked)) => {
            with_config(file, |config| print(explain::explain(config, &asked.method, &asked.url, &asked.headers)))
        }
        Some(Command::Demo(options)) => finish(run_demo(options.port)),
        Some(Command::Trust(options)) => change_trust(file, trust::Request::Trust, options.yes),
        Some(Command::Untrust(options)) => {
            change_trust(file, trust::Request::Untrust { all: options.all }, options.yes)
        }
        None => {
            tell(<Arguments as CommandFactory>::command().render_help());
            ExitCode::from(2)
        }
    }
}

fn with_config(file: &Path, command: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match config::load(file, &|name| std::env::var(name).ok()) {
        Ok(config) => command(&config),
        Err(problems) => fail(problems),
    }
}

/// Problems of the file, then of the world around it. Warnings alone do not fail.
fn check(file: &Path, offline: bool) -> ExitCode {
    with_config(file, |config| {
        if let Err(error) = explain::rehearse(config) {
            return fail(error);
        }
        let (findings, unread) =
            match privilege::look(config, || if offline { Vec::new() } else { doctor::check(config) }) {
                Ok(looked) => looked,
                Err(error) => return fail(error),
            };
        for finding in &findings {
            tell(finding);
        }
        unread.iter().for_each(|line| tell(format_args!("warning: {line}")));
        if findings.iter().any(|finding| finding.severity == Severity::Error) {
            return ExitCode::FAILURE;
        }
        say(&format!("{}: the configuration is good", file.display()));
        ExitCode::SUCCESS
    })
}

/// Asks the running server, waits for the outcome, and fails when it is none; `kept` is what is so nevertheless.
fn ask(file: &Path, request: Request<'_>, kept: &str) -> ExitCode {
    match control::ask(&socket_path(file), request) {
        Ok(Ok(text)) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Ok(Err(text)) => fail(format!("{text}{kept}")),
        Err(error) => fail(error),
    }
}

fn sockets(file: &Path, options: Sockets) -> ExitCode {
    let path = socket_path(file);
    let Sockets { filter, json, limit, command } = options;
    let Some(SocketsCommand::Close(close)) = command else {
        let shown = Shown { json, limit, width: width() };
        return finish(ask::list(&path, selection(filter), shown, &mut io::stdout().lock()));
    };
    if filter != SocketFilter::default() || json || limit.is_some() {
        return fail("what chooses the sockets to close comes behind `close`: doorward sockets close --site app");
    }
    let closing = Closing {
        ids: close.ids,
        selection: selection(close.filter),
        all: close.all,
        code: close.code,
        over: close.over,
    };
    finish(ask::close(&path, closing, &mut io::stdout().lock()))
}

fn list_upstreams(file: &Path, json: bool) -> ExitCode {
    match upstreams::ask(&socket_path(file), upstreams::Shown { json, width: width() }) {
        Ok(outcome) => print(outcome),
        Err(error) => fail(error),
    }
}

/// Columns of the terminal, if there is one.
fn width() -> Option<usize> {
    let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    width.filter(|width| *width > 0)
}

fn selection(filter: SocketFilter) -> Selection {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Selection {
        ids: BTreeSet::new(),
        site: filter.site,
        back_end: filter.back_end,
        client: filter.client,
        path: filter.path,
        idle_ms: filter.idle.map(ms),
        older_ms: filter.older.map(ms),
    }
}

fn socket_path(file: &Path) -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    control::socket_path(file, &|name| std::env::var(name).ok(), uid)
}

/// What the running server says, or, if none runs, what the file and the disk say.
fn list_certificates(file: &Path) -> ExitCode {
    match control::ask(&socket_path(file), Request::List) {
        Ok(outcome) => print(outcome),
        Err(ControlError::NotRunning(_)) => with_config(file, |config| print(automatic::list(config))),
        Err(error) => fail(error),
    }
}

fn show(file: &Path) -> ExitCode {
    with_config(file, |config| {
        say(config::show(config).trim_end());
        ExitCode::SUCCESS
    })
}

fn change_trust(file: &Path, request: trust::Request, yes: bool) -> ExitCode {
    finish(trust::run(file, file == Path::new(DEFAULT_CONFIG), request, yes, &mut io::stdout()))
}

/// The real proxy in front of back ends of our own, which live on a thread beside it.
fn run_demo(https_port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let stop = CancellationToken::new();
    let (sender, back_ends) = mpsc::channel();
    let serving = std::thread::Builder::new().name("demo".to_owned()).spawn({
        let stop = stop.clone();
        move || serve_back_ends(stop, sender)
    })?;
    let back_ends = back_ends.recv().map_err(|_| io::Error::other("the demo's back ends did not start"))??;
    let http_port = free_port(8080)?;
    let text = demo::config_text(&back_ends, https_port, http_port);
    let source = Source::Text { folder: std::env::current_dir()?, name: "demo.toml".to_owned(), text: text.clone() };
    start::run(source, false, take_arena, || {
        start_allocator_threads();
        say(&demo::banner(&text, https_port, http_port));
    })?;
    stop.cancel();
    serving.join().map_err(|_| io::Error::other("the demo's back ends panicked"))??;
    Ok(())
}

fn serve_back_ends(stop: CancellationToken, sender: mpsc::Sender<io::Result<DemoBackEnds>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match demo::start(stop.clone()).await {
            Ok(back_ends) => {
                let ended = back_ends.ended_when(stop);
                // The receiver is gone only when the demo is.
                let _ = sender.send(Ok(back_ends));
                ended.await;
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    });
    Ok(())
}

/// `wanted`, or any other port of loopback that is free.
fn free_port(wanted: u16) -> io::Result<u16> {
    let bound =
        TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(bound.local_addr()?.port())
}

fn finish<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn print<E: std::fmt::Display>(result: Result<String, E>) -> ExitCode {
    match result {
        Ok(text) => {
            say(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => fail(error),
    }
}

fn fail(error: impl std::fmt::Display) -> ExitCode {
    tell(error.to_string().trim_end());
    ExitCode::FAILURE
}

/// What a command was asked for. A reader that has left (`| head`) is no failure.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// What went wrong.
fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
