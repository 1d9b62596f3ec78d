//! What rendering a warm turn costs, by template and number of messages.
//!
//! Each turn is the one before with an answer and a tool's result more, as agents send them. Turns whose messages are
//! shared with the turn before are rendered in parts; the same turns with messages of their own are rendered as a
//! whole, from nothing. `render_cost TEMPLATE…` prints the medians in microseconds.

use std::sync::Arc;
use std::time::Instant;

use mainstay_chat::{
    Block, ChatTemplate, Content, Conversation, Message, RenderOptions, Role, Tool, ToolKind,
};

/// Text of one conversation, whatever the number of its messages.
const TEXT_BYTES: usize = 130_000;
const ROUNDS: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let start = Instant::now();
        let template = ChatTemplate::new(&std::fs::read_to_string(&path)?, "<s>", "</s>")?;
        println!("{path}: loaded in {} us", start.elapsed().as_micros());
        for messages in [70, 150] {
            let shared = cost(&template, messages, true)?;
            let before = template.part_counts();
            cost(&template, messages, true)?;
            let after = template.part_counts();
            let whole = cost(&template, messages, false)?;
            println!(
                "{path}: {messages} messages, whole {whole:.0} us, in parts {shared:.0} us, \
                 {} of {} parts run",
                after.run - before.run,
                after.run - before.run + after.known - before.known,
            );
        }
    }
    Ok(())
}

/// The median of renderings of a conversation that grows by two messages each time.
fn cost(
    template: &ChatTemplate,
    messages: usize,
    shared: bool,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut conversation = Conversation { tools: Arc::new(tools()), ..Conversation::default() };
    conversation.system.push(Block::text("You are a careful agent. ".repeat(200)));
    let bytes = TEXT_BYTES / messages;
    while conversation.messages.len() + 2 * ROUNDS < messages {
        say(&mut conversation, bytes);
    }
    let mut costs = Vec::with_capacity(ROUNDS);
    for round in 0..2 * ROUNDS {
        if conversation.messages.len() >= messages {
            // An odd number of messages ends with a result.
            conversation.messages.truncate((messages - 4) | 1);
        }
        say(&mut conversation, bytes);
        let mut turn = conversation.clone();
        if !shared {
            turn.tools = Arc::clone(&conversation.tools);
            for message in &mut turn.messages {
                *message = Arc::new(Message::clone(message));
            }
        }
        let start = Instant::now();
        let text = template.render(&turn, RenderOptions::default())?;
        let took = start.elapsed();
        drop(text);
        if round >= ROUNDS {
            costs.push(took.as_secs_f64() * 1e6);
        }
    }
    costs.sort_by(f64::total_cmp);
    Ok(costs[costs.len() / 2])
}

fn say(conversation: &mut Conversation, bytes: usize) {
    let number = conversation.messages.len();
    if number == 0 {
        conversation.push(Role::User, vec![Block::text("Do it. ".repeat(40))]);
    }
    let text = format!("line {number} of the file, as it was read\n").repeat(bytes / 20);
    let call = Content::ToolCall {
        id: format!("call_{number}"),
        name: "tool_3".to_owned(),
        arguments: format!("{{\"path\":\"src/{number}.rs\",\"from\":1,\"to\":200}}"),
    };
    let result = Content::ToolResult {
        call_id: format!("call_{number}"),
        blocks: vec![Block::text(&text[..(2 * bytes).min(text.len())])],
        is_error: false,
    };
    conversation.push(Role::Assistant, vec![Block::text("I look there."), Block::from(call)]);
    conversation.push(Role::Tool, vec![Block::from(result)]);
}

fn tools() -> Vec<Tool> {
    let tool = |number| Tool {
        name: format!("tool_{number}"),
        description: "Reads lines of a file, and says where they stand. ".repeat(12),
        schema: serde_json::json!({
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "The file"},
                "from": {"type": "integer", "description": "The first line"},
                "to": {"type": "integer", "description": "The last line"},
            },
            "required": ["path"],
        }),
        client_name: None,
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    };
    (0..20).map(tool).collect()
}
