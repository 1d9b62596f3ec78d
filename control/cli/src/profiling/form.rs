//! A profile in pprof's form (`profile.proto` of github.com/google/pprof), which `go tool pprof` and collectors of
//! profiles read. Only the members that we fill are here; tags are the format's.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use prost::Message;

use super::stacks::{Frame, Profile, Stack};

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProfileForm {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueForm>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<SampleForm>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<LocationForm>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<FunctionForm>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueForm>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueForm {
    #[prost(int64, tag = "1")]
    pub(super) kind: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SampleForm {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) label: Vec<LabelForm>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct LabelForm {
    #[prost(int64, tag = "1")]
    pub(super) key: i64,
    #[prost(int64, tag = "2")]
    pub(super) text: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LocationForm {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<LineForm>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct LineForm {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
    #[prost(int64, tag = "2")]
    pub(super) line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct FunctionForm {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "4")]
    pub(super) filename: i64,
}

/// Everything that stands in a profile once, however often it is meant.
struct Tables {
    form: ProfileForm,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<(u64, u32), u64>,
}

impl Tables {
    fn new() -> Self {
        let mut tables = Self {
            form: ProfileForm::default(),
            strings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        // The format wants it to be the first.
        tables.text("");
        tables
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(place) = self.strings.get(text) {
            return *place;
        }
        let place = whole(self.strings.len());
        self.form.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), place);
        place
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let (name, filename) = (self.text(&frame.name), self.text(&frame.file));
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.form.function.push(FunctionForm { id, name, filename });
        }
        id
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        let function_id = self.function(frame);
        let next = self.locations.len() as u64 + 1;
        let id = *self.locations.entry((function_id, frame.line)).or_insert(next);
        if id == next {
            let line = vec![LineForm { function_id, line: i64::from(frame.line) }];
            self.form.location.push(LocationForm { id, line });
        }
        id
    }

    fn value(&mut self, kind: &str, unit: &str) -> ValueForm {
        ValueForm { kind: self.text(kind), unit: self.text(unit) }
    }
}

/// The profile as bytes.
pub(super) fn encode(profile: &Profile) -> Vec<u8> {
    let mut tables = Tables::new();
    let period = nanos(profile.period.as_nanos());
    let cpu = tables.value("cpu", "nanoseconds");
    tables.form.sample_type = vec![tables.value("samples", "count"), cpu];
    let thread = tables.text("thread");
    for Stack { thread: name, frames, count } in &profile.stacks {
        let location_id = frames.iter().map(|frame| tables.location(frame)).collect();
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let label = vec![LabelForm { key: thread, text: tables.text(name) }];
        let value = vec![count, count.saturating_mul(period)];
        tables.form.sample.push(SampleForm { location_id, value, label });
    }
    let since = profile.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    tables.form.time_nanos = nanos(since.as_nanos());
    tables.form.duration_nanos = nanos(profile.duration.as_nanos());
    tables.form.period_type = Some(cpu);
    tables.form.period = period;
    tables.form.encode_to_vec()
}

fn whole(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn nanos(n: u128) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
