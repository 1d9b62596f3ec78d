//! The numbers of calls, which stand for the ids that clients gave them.
//!
//! Ids differ between two runs of one harness, so a template that prints them would end the prefix which the runs
//! share. They are numbered instead, in the nine letters and digits that the strictest templates ask for.

use std::collections::HashMap;

use super::super::hf::Shape;
use crate::ir::{Content, Message, Role};

/// The number of a call, and the name of its tool where that is known.
pub(super) type Number<'c> = (usize, Option<&'c str>);

/// The calls of a conversation, under names of our own.
#[derive(Default)]
pub(super) struct Calls<'c> {
    /// By the client's id: the number, and the tool's name if a call was seen.
    known: HashMap<&'c str, Number<'c>>,
    count: usize,
}

impl<'c> Calls<'c> {
    /// The numbers of the calls that a message makes or answers, in order.
    pub(super) fn number(
        &mut self,
        message: &'c Message,
        shape: Shape,
        numbers: &mut Vec<Number<'c>>,
    ) {
        for block in &message.blocks {
            match (&block.content, message.role) {
                (Content::ToolCall { id, name, .. }, Role::Assistant) => {
                    numbers.push(self.made(id, name));
                }
                (Content::ToolResult { call_id, .. }, Role::Tool) if shape.tool_role => {
                    numbers.push(self.answered(call_id));
                }
                _ => {}
            }
        }
    }

    /// The number of a new call; clients that count from 0 in each turn give one id to many calls.
    fn made(&mut self, id: &'c str, name: &'c str) -> Number<'c> {
        self.count += 1;
        let call = (self.count, Some(name));
        self.known.insert(id, call);
        call
    }

    /// The number of the call that a result answers, and the tool's name, which templates want and results lack.
    fn answered(&mut self, id: &'c str) -> Number<'c> {
        let next = self.count + 1;
        let call = *self.known.entry(id).or_insert((next, None));
        self.count = self.count.max(call.0);
        call
    }
}

pub(super) fn written(number: usize) -> String {
    format!("call{number:05}")
}
