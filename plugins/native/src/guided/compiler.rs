//! From the spec of a form to a guide, with a memory of forms that were compiled before: agents send
//! the same schemas turn after turn.

use std::collections::VecDeque;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use mainstay_engine_abi::sdk::{Code, EngineError, Guided, GuidedKind};
use serde_json::{Value, json};

use super::{Guide, GuideError, vocabulary};
use crate::bundled::bundled_demo;
use crate::json::read_bounded;
use crate::options::ModelPlace;

/// Compiled forms that are remembered; the eldest goes first.
const REMEMBERED_MAX: usize = 32;
/// Bytes of the specs among them: what is compiled is some hundred times larger.
const REMEMBERED_BYTES_MAX: usize = 1 << 20;
/// Brackets within brackets: the library descends by recursion.
const NESTING_MAX: usize = 96;
/// References in schemas, and in a grammar what may be one: a reference is compiled inside the one that leads to it, and
/// the library sets no limit to that.
const REFERENCES_MAX: usize = 1024;
/// Lines of a grammar: a rule may descend into the next, so each may be a level of recursion too.
const GRAMMAR_LINES_MAX: usize = 4096;
/// The largest tokenizer.json that is read.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

const TOKENIZER: &str = "tokenizer.json";

/// Makes guides for one model.
pub struct Compiler {
    place: ModelPlace,
    vocab: usize,
    eos_tokens: Vec<u32>,
    /// Made for the first form: most engines see none. An error stays one.
    factory: Option<Result<ParserFactory, String>>,
    /// The latest last.
    remembered: VecDeque<(Guided, Matcher)>,
}

impl Compiler {
    /// A compiler that has read nothing yet.
    #[must_use]
    pub fn new(place: ModelPlace, vocab: usize, eos_tokens: &[u32]) -> Self {
        let eos_tokens = eos_tokens.to_vec();
        Self { place, vocab, eos_tokens, factory: None, remembered: VecDeque::new() }
    }

    /// A guide behind the tokens that were drawn already. May take long; see the module.
    pub fn guide(&mut self, form: &Guided, drawn: &[u32]) -> Result<Guide, EngineError> {
        let mut matcher = self.matcher(form)?;
        let drawn = drawn.iter().copied().filter(|token| !self.eos_tokens.contains(token));
        matcher.consume_tokens(&drawn.collect::<Vec<u32>>()).map_err(|error| {
            let reason = GuideError::new(&error.to_string());
            EngineError::invalid(format!("the tokens drawn before do not fit: {reason}"))
        })?;
        Ok(Guide { matcher, eos_tokens: self.eos_tokens.clone() })
    }

    fn matcher(&mut self, form: &Guided) -> Result<Matcher, EngineError> {
        // The copy is deep: a shared lexer would fill up with the states of all who ever used it.
        if let Some(at) = self.remembered.iter().position(|(known, _)| known == form) {
            let found = self.remembered.remove(at);
            let matcher = found.as_ref().map(|(_, matcher)| matcher.deep_clone());
            self.remembered.extend(found);
            if let Some(matcher) = matcher {
                return Ok(matcher);
            }
        }
        let grammar = grammar(form)?;
        let factory = self.factory()?;
        let matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(EngineError::invalid(GuideError::new(&error).to_string()));
        }
        self.remember(form, matcher.deep_clone());
        Ok(matcher)
    }

    fn remember(&mut self, form: &Guided, matcher: Matcher) {
        self.remembered.push_back((form.clone(), matcher));
        let bytes = |all: &VecDeque<(Guided, Matcher)>| -> usize {
            all.iter().map(|(form, _)| form.spec.len()).sum()
        };
        while self.remembered.len() > REMEMBERED_MAX
            || bytes(&self.remembered) > REMEMBERED_BYTES_MAX
        {
            self.remembered.pop_front();
        }
    }

    fn factory(&mut self) -> Result<&ParserFactory, EngineError> {
        if self.factory.is_none() {
            self.factory = Some(self.new_factory());
        }
        match &self.factory {
            Some(Ok(factory)) => Ok(factory),
            Some(Err(reason)) => {
                let message = format!("this model takes no forms: {TOKENIZER}: {reason}");
                Err(EngineError::new(Code::Unimplemented, message))
            }
            None => Err(EngineError::internal("the vocabulary was not read")),
        }
    }

    fn new_factory(&self) -> Result<ParserFactory, String> {
        let bytes = match &self.place {
            ModelPlace::Bundled => bundled_demo().file(TOKENIZER).ok_or("it is missing")?.to_vec(),
            ModelPlace::Folder(folder) => {
                read_bounded(&folder.join(TOKENIZER), TOKENIZER_BYTES_MAX)
                    .map_err(|e| e.to_string())?
            }
        };
        let vocabulary = vocabulary::read(&bytes, self.vocab, &self.eos_tokens)?;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&vocabulary, InferenceCapabilities::default(), &slices)
                .map_err(|e| e.to_string())?;
        // Nothing of a client's belongs on the operator's terminal.
        factory.set_stderr_log_level(0);
        *factory.limits_mut() = limits();
        Ok(factory)
    }
}

/// What one form may cost: half a second to compile, some ten milliseconds a token, some ten
/// megabytes.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 32_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

fn grammar(form: &Guided) -> Result<TopLevelGrammar, EngineError> {
    check_nesting(&form.spec)?;
    match form.kind {
        GuidedKind::JsonSchema => {
            let schema: Value = serde_json::from_str(&form.spec)
                .map_err(|e| EngineError::invalid(format!("the schema is not JSON: {e}")))?;
            // Written anew, so that no escape hides one.
            check_references(schema.to_string().matches("$ref").count())?;
            Ok(TopLevelGrammar::from_json_schema(tight(schema)?))
        }
        GuidedKind::Regex => Ok(TopLevelGrammar::from_regex(&form.spec)),
        GuidedKind::Lark => {
            let lines = form.spec.lines().count();
            if lines > GRAMMAR_LINES_MAX {
                let message =
                    format!("the grammar has {lines} lines, more than {GRAMMAR_LINES_MAX}");
                return Err(EngineError::invalid(message));
            }
            // A grammar may hold schemas, in which an escape may hide one.
            let escapes = form.spec.matches("\\u").count();
            check_references(form.spec.matches("$ref").count() + escapes)?;
            Ok(TopLevelGrammar::from_lark(form.spec.clone()))
        }
    }
}

/// A schema says nothing of white space. Left free, a model may write it for ever; so there is one
/// space after a colon or a comma, or none, as models write by themselves. Whether keywords that cannot
/// be enforced are passed over is the asker's choice.
fn tight(schema: Value) -> Result<Value, EngineError> {
    let mut members = match schema {
        Value::Object(members) => members,
        Value::Bool(true) => serde_json::Map::new(),
        _ => return Err(EngineError::invalid("the schema is not a JSON object")),
    };
    let asked = members.get("x-guidance").and_then(|asked| asked.get("lenient"));
    let lenient = asked.and_then(Value::as_bool).unwrap_or(false);
    let manner = json!({
        "lenient": lenient, "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
        "coerce_one_of": true,
    });
    members.insert("x-guidance".to_owned(), manner);
    Ok(Value::Object(members))
}

fn check_references(count: usize) -> Result<(), EngineError> {
    if count > REFERENCES_MAX {
        let message = format!("the form has {count} references, more than {REFERENCES_MAX}");
        return Err(EngineError::invalid(message));
    }
    Ok(())
}

fn check_nesting(spec: &str) -> Result<(), EngineError> {
    let mut depth = 0_usize;
    for byte in spec.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            let message = format!("the form nests more than {NESTING_MAX} brackets");
            return Err(EngineError::invalid(message));
        }
    }
    Ok(())
}
