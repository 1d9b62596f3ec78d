//! Generated text of every family: the same pieces come out however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_chat::{Family, OutputEvent, OutputOptions, OutputParser};

/// Neighbours of one kind joined.
fn read<'t>(options: &OutputOptions, chunks: impl Iterator<Item = &'t str>) -> Vec<(char, String)> {
    let mut parser = OutputParser::new(options.clone());
    let mut events: Vec<OutputEvent> = chunks.flat_map(|chunk| parser.push(chunk)).collect();
    events.extend(parser.finish());
    let mut pieces: Vec<(char, String)> = Vec::new();
    for event in events {
        let (kind, text) = match event {
            OutputEvent::Thinking(text) => ('t', text),
            OutputEvent::Text { delta, .. } => ('x', delta),
            OutputEvent::ToolCallStart { name, .. } => ('n', name),
            OutputEvent::ToolCallArguments(text) => ('a', text),
            OutputEvent::ToolCallEnd => ('e', String::new()),
        };
        match pieces.last_mut() {
            Some((last, joined)) if *last == kind && matches!(kind, 't' | 'x') => {
                joined.push_str(&text)
            }
            _ => pieces.push((kind, text)),
        }
    }
    pieces
}

fuzz_target!(|input: (u8, u8, &str)| {
    let (choice, step, text) = input;
    let options = OutputOptions {
        family: Family::ALL[usize::from(choice) % Family::ALL.len()],
        parse_thinking: step & 1 == 0,
        thinking_open: step & 2 != 0,
        parse_tools: step & 4 == 0,
        stop: if step & 8 == 0 { Vec::new() } else { vec!["STOP".to_owned()] },
        ..OutputOptions::default()
    };
    let whole = read(&options, std::iter::once(text));
    let width = 1 + usize::from(step >> 4);
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let bounds: Vec<usize> = ends.iter().copied().step_by(width).chain([text.len()]).collect();
    let cut = read(&options, bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]));
    assert_eq!(whole, cut, "{:?}", options.family);
    for (kind, text) in &whole {
        assert!(
            *kind != 'a' || text.trim_start().starts_with('{'),
            "arguments are an object: {text}"
        );
    }
});
