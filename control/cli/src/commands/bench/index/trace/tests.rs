//! Both readers on files written here: what is shared, what is private, and what is refused.

use std::io::Write;

use super::*;

fn requests(trace: Trace) -> Vec<Request> {
    trace.requests.collect()
}

fn shared_blocks(a: &Request, b: &Request) -> usize {
    a.chain.iter().zip(&b.chain).take_while(|(a, b)| a.0 == b.0).count()
}

fn chats(text: &str) -> Result<Vec<Request>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    read(file.path(), 100, 1).map(requests)
}

#[test]
fn chats_expand_to_blocks_of_sixteen_tokens() {
    let read = chats(concat!(
        r#"{"timestamp": 0, "input_length": 1000, "output_length": 40, "hash_ids": [0, 1]}"#,
        "\n\n",
        r#"{"timestamp": 5, "input_length": 1536, "output_length": 0, "hash_ids": [0, 1, 9]}"#,
        "\n",
        r#"{"timestamp": 6, "input_length": 600, "output_length": 16, "hash_ids": [0, 2]}"#,
    ))
    .unwrap();
    let lengths: Vec<_> = read.iter().map(|r| (r.prompt_blocks, r.chain.len())).collect();
    // 1,000 tokens are 62 blocks, and 40 more complete 3.
    assert_eq!(lengths, [(62, 65), (96, 96), (37, 38)]);
    assert_eq!(shared_blocks(&read[0], &read[1]), 62, "decoded blocks are private");
    assert_eq!(shared_blocks(&read[0], &read[2]), 32);
}

#[test]
fn broken_chats_are_refused_with_their_line() {
    let good = r#"{"timestamp": 0, "input_length": 16, "output_length": 1, "hash_ids": [0]}"#;
    let refusal = |text: &str| format!("{:#}", chats(text).err().unwrap());
    assert!(refusal(&format!("{good}\n{{")).contains("line 2"));
    assert!(refusal(r#"{"hash_ids": "x"}"#).contains("line 1"));
    assert!(refusal("").contains("no requests"));
    assert!(read(Path::new("not/there"), 1, 1).is_err());
    // Lengths that no memory holds are cut to what the ids name.
    let huge =
        format!(r#"{{"input_length": {0}, "output_length": {0}, "hash_ids": [{0}, 1]}}"#, u64::MAX);
    let read = chats(&huge).unwrap();
    assert_eq!(read[0].prompt_blocks, 64);
}

const SESSION: &str = r#"{"block_size": 64, "tool_tokens": 100, "system_tokens": 40, "requests": [
    {"t": 0.0, "type": "n", "in": 256, "out": 130, "hash_ids": [1, 2, 3, 4]},
    {"t": 5000.0, "type": "subagent", "tool_tokens": 64, "system_tokens": 0, "requests": [
        {"t": 1.0, "type": "n", "in": 128, "out": 1, "hash_ids": [1, 50]}]},
    {"t": 5001.0, "type": "n", "in": 448, "out": 1, "hash_ids": [1, 2, 3, 4, 5, 6, 7]}]}"#;

fn sessions(texts: &[&str], count: usize) -> Result<Trace> {
    let dir = tempfile::tempdir().unwrap();
    for (number, text) in texts.iter().enumerate() {
        fs::write(dir.path().join(format!("{number}.json")), text).unwrap();
    }
    read(dir.path(), count, 1)
}

#[test]
fn sessions_share_tools_and_decode_what_the_next_turn_brings() {
    let trace = sessions(&[SESSION, SESSION], 100).unwrap();
    assert_eq!(trace.block_tokens, 64);
    let read = requests(trace);
    assert_eq!(read.len(), 6);
    let first: Vec<&Request> = read.iter().filter(|r| r.prompt_blocks == 4).collect();
    // 130 tokens out are two blocks, and the next turn names them.
    assert!(first.iter().all(|r| r.chain.len() == 6));
    // 140 tokens of tools and system are two blocks that both sessions have in common.
    assert_eq!(shared_blocks(first[0], first[1]), 2);
    let last: Vec<&Request> = read.iter().filter(|r| r.prompt_blocks == 7).collect();
    let mut shared: Vec<usize> =
        first.iter().flat_map(|a| last.iter().map(|b| shared_blocks(a, b))).collect();
    shared.sort_unstable();
    assert_eq!(shared, [2, 2, 6, 6]);
    let subagents: Vec<&Request> = read.iter().filter(|r| r.prompt_blocks == 2).collect();
    assert_eq!(shared_blocks(subagents[0], subagents[1]), 1);
    assert_eq!(shared_blocks(subagents[0], first[0]), 0, "other tools, other prefix");
}

#[test]
fn a_folder_without_sessions_or_with_mixed_ones_is_refused() {
    assert!(sessions(&[], 10).is_err());
    assert!(sessions(&["{]"], 10).is_err());
    let other = SESSION.replace("\"block_size\": 64", "\"block_size\": 16");
    let refusal = sessions(&[SESSION, &other], 10).err().unwrap();
    assert!(refusal.to_string().contains("blocks of 16 tokens"), "{refusal}");
    assert_eq!(requests(sessions(&[SESSION], 2).unwrap()).len(), 2);
}
