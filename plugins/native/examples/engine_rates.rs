//! A measurement of the engine on one model folder, printed as JSON: `engine_rates MODEL_DIR
//! [REPEATS] [THREADS]`. It exists to be run beside another engine on the same machine.

use std::process::ExitCode;

use mainstay_native::bench;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let model_dir = arguments.next().unwrap_or_default();
    let repeats = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let threads: Option<usize> = arguments.next().and_then(|text| text.parse().ok());
    let mut config = serde_json::json!({ "model_dir": model_dir });
    if let Some(threads) = threads {
        config["threads"] = threads.into();
    }
    let rates = bench::run(&config.to_string(), repeats);
    match rates
        .map_err(|e| e.to_string())
        .and_then(|r| serde_json::to_string(&r).map_err(|e| e.to_string()))
    {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
