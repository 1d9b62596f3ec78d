//! Engines that die or lie: what was live ends with an error, and the reason is told.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_engine_host::sdk::Finish;
use mainstay_engine_host::{ExitReason, HostError, LoadError, Receivers, Source, open};

use crate::support::{
    MIDDLE_WORD, args, c_echo, child, compile, read_until_finals, request, run, rust_echo,
};

async fn end_of(receivers: Receivers) -> ExitReason {
    let mut receivers = receivers;
    while receivers.outputs.recv().await.is_some() {}
    receivers.exit.await.unwrap()
}

#[test]
fn a_crash_while_loading_names_the_signal() {
    let engine = compile("echo.c", &["-DCRASH_IN_CREATE"]);
    let error = run(open(child(Some(engine.path.clone())), "{}")).err().unwrap();
    let LoadError::ChildCrashed { how } = &error else { panic!("{error}") };
    assert!(how.starts_with("signal SIGSEGV"), "{how}");
    assert!(error.to_string().contains("the engine is at fault"), "{error}");
}

#[test]
fn a_crash_while_serving_ends_every_request_once() {
    let engine = compile("echo.c", &["-DCRASH_AFTER=5"]);
    run(async {
        let (handle, mut receivers) = open(child(Some(engine.path.clone())), "{}").await.unwrap();
        handle.submit(request(1, &[777])).await.unwrap();
        handle.submit(request(2, &[777])).await.unwrap();
        // Its ten outputs are the death of the engine.
        let third = handle.submit(request(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])).await;
        let finals = 2 + usize::from(third.is_ok());
        let outputs = read_until_finals(&mut receivers, finals).await;
        let mut ended: Vec<u64> =
            outputs.iter().filter(|o| o.finish.is_some()).map(|o| o.id).collect();
        ended.sort_unstable();
        assert_eq!(ended, [1, 2, 3][..finals]);
        for output in outputs.iter().filter(|o| o.finish.is_some()) {
            let Some(Finish::Error { rc: -14, message }) = &output.finish else {
                panic!("{output:?}")
            };
            assert!(message.contains("SIGSEGV"), "{message}");
        }
        let error = handle.submit(request(4, &[1])).await.unwrap_err();
        assert!(matches!(error, HostError::Ended(ExitReason::ProcessEnded(_))), "{error}");
        assert!(handle.stats().await.is_err());
        let reason = end_of(receivers).await;
        assert!(reason.to_string().contains("signal SIGSEGV"), "{reason}");
    });
}

#[test]
fn a_child_that_is_killed_is_noticed() {
    run(async {
        let (handle, mut receivers) = open(child(None), "{}").await.unwrap();
        handle.submit(request(1, &[777])).await.unwrap();
        kill(handle.process_id().unwrap());
        let outputs = read_until_finals(&mut receivers, 1).await;
        assert!(matches!(outputs.last().unwrap().finish, Some(Finish::Error { rc: -14, .. })));
        let reason = end_of(receivers).await;
        assert_eq!(reason, ExitReason::ProcessEnded("signal SIGKILL".into()));
    });
}

#[test]
fn a_panic_is_an_error_here_and_in_a_child() {
    run(async {
        for source in [Source::Linked(rust_echo()), child(None)] {
            let (handle, mut receivers) = open(source, "{}").await.unwrap();
            handle.submit(request(1, &[777])).await.unwrap();
            let error = handle.submit(request(2, &[666])).await.unwrap_err();
            assert!(error.to_string().contains("told to panic"), "{error}");
            let outputs = read_until_finals(&mut receivers, 1).await;
            assert_eq!(outputs.last().unwrap().id, 1);
            let reason = end_of(receivers).await;
            assert!(matches!(reason, ExitReason::Fatal(_)), "{reason}");
        }
    });
}

#[test]
fn an_engine_that_drops_outputs_or_points_astray_is_given_up() {
    for (switch, words) in [("-DSKIP_OUT", "lane OUT went from"), ("-DBAD_OFFSET", "lie outside")] {
        let engine = compile("echo.c", &[switch]);
        run(async {
            for source in [Source::Library(engine.path.clone()), child(Some(engine.path.clone()))] {
                let (handle, mut receivers) = open(source, "{}").await.unwrap();
                let submitted = handle.submit(request(1, &[777])).await;
                if switch == "-DSKIP_OUT" {
                    // The first batch is whole; the loss shows with the second.
                    assert_eq!(receivers.outputs.recv().await.unwrap().len(), 1);
                    handle.cancel(1);
                }
                if let Err(error) = submitted {
                    // The engine was found out before its answer came.
                    assert!(error.to_string().contains(words), "{error}");
                    assert!(receivers.outputs.recv().await.is_none(), "refused is refused");
                    continue;
                }
                let outputs = read_until_finals(&mut receivers, 1).await;
                let finish = outputs.last().unwrap().finish.clone();
                let Some(Finish::Error { rc: -14, message }) = finish else { panic!("{finish:?}") };
                assert!(message.contains(words), "{message}");
                let reason = end_of(receivers).await;
                assert!(matches!(reason, ExitReason::Broken(_)), "{reason}");
            }
        });
    }
}

#[test]
fn a_gap_in_the_cache_events_is_a_reset() {
    let engine = compile("echo.c", &["-DSKIP_KV"]);
    run(async {
        for source in [Source::Library(engine.path.clone()), child(Some(engine.path.clone()))] {
            let (handle, mut receivers) = open(source, "{}").await.unwrap();
            handle.submit(request(1, &[1, 2, 3, 4])).await.unwrap();
            let whole = receivers.kv.recv().await.unwrap();
            assert_eq!((whole.reset, whole.gap, whole.first_seq), (false, false, 0));
            handle.submit(request(2, &[1, 2, 3, 4])).await.unwrap();
            let after_gap = receivers.kv.recv().await.unwrap();
            assert_eq!((after_gap.reset, after_gap.gap, after_gap.first_seq), (true, true, 2));
        }
    });
}

fn kill(process_id: u32) {
    let killed =
        Command::new("bash").args(["-c", &format!("kill -KILL {process_id}")]).status().unwrap();
    assert!(killed.success());
}

/// Whether the process is there and not merely waiting to be reaped.
fn is_alive(process_id: u32) -> bool {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(process_id.to_string()).join("stat"));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        state != Some("Z")
    })
}

/// Names for [`middle`] what to open.
const LIBRARY: &str = "MAINSTAY_TEST_LIBRARY";
const CONFIG: &str = "MAINSTAY_TEST_CONFIG";

/// A worker for the tests of a host's death: opens a child, says its id, and waits.
pub(crate) fn middle() -> ! {
    let library = std::env::var_os(LIBRARY).map(PathBuf::from);
    let config = std::env::var(CONFIG).unwrap_or_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (handle, _receivers) = runtime.block_on(open(child(library), &config)).unwrap();
    println!("child={}", handle.process_id().unwrap());
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn kill_and_see(host: &mut Child, child_id: u32) {
    assert!(is_alive(child_id));
    kill(host.id());
    host.wait().unwrap();
    let since = Instant::now();
    while is_alive(child_id) {
        assert!(since.elapsed() < Duration::from_secs(10), "the child outlives its host");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn host() -> Command {
    let mut host = Command::new(std::env::current_exe().unwrap());
    host.args(args(MIDDLE_WORD)).stdout(Stdio::piped());
    host
}

#[test]
fn the_death_of_the_host_ends_the_child() {
    let mut host = host().spawn().unwrap();
    let lines = BufReader::new(host.stdout.take().unwrap()).lines();
    // The test harness prints around it.
    let child_id: u32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.split("child=").nth(1).map(|id| id.trim().parse().unwrap()))
        .expect("the host names its child");
    kill_and_see(&mut host, child_id);
}

#[test]
fn the_death_of_the_host_ends_a_child_that_hangs_while_loading() {
    let engine = compile("echo.c", &["-DHANG_IN_CREATE"]);
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("process-id");
    let mut host = host().env(LIBRARY, &engine.path).env(CONFIG, &note).spawn().unwrap();
    let since = Instant::now();
    let child_id = loop {
        // The full stop says that the number is whole.
        let text = std::fs::read_to_string(&note).unwrap_or_default();
        if let Some(id) = text.strip_suffix('.') {
            break id.parse().unwrap();
        }
        assert!(since.elapsed() < Duration::from_secs(20), "the engine is loaded");
        std::thread::sleep(Duration::from_millis(10));
    };
    kill_and_see(&mut host, child_id);
}

#[test]
fn a_child_ends_when_its_handle_goes() {
    let engine = c_echo();
    let child_id = run(async {
        let (handle, _receivers) = open(child(Some(engine.path.clone())), "{}").await.unwrap();
        handle.process_id().unwrap()
    });
    let since = Instant::now();
    while is_alive(child_id) {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
}
