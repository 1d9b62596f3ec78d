//! What is cut where, and what is not cut at all.

use super::{SOURCES_BYTES_USUAL, Source, plan, tags::tags};

fn parts(source: &str) -> Vec<String> {
    let plan = plan(source).unwrap();
    let written = |part: Source| match part {
        Source::Once(source) => source,
        Source::Each { list, item, body } => format!("{item} of {list}: {body}"),
    };
    plan.parts.into_iter().map(written).collect()
}

#[test]
fn delimiters_in_strings_brackets_and_comments_are_none() {
    let source = "a{b {# {% x %} #}{{ '}}' + \"%}\\\"}}\" }}{%- set y = {'a': {'b': 1}} -%}{{+ {'a': {}} -}}";
    let found: Vec<(&str, &str, &str)> =
        tags(source).unwrap().into_iter().map(|tag| (tag.left, tag.inner, tag.right)).collect();
    let expected = [
        ("", " '}}' + \"%}\\\"}}\" ", ""),
        ("-", " set y = {'a': {'b': 1}} ", "-"),
        ("+", " {'a': {}} ", "-"),
    ];
    assert_eq!(found, expected);
    for open in ["{{ a", "{% a }}", "{{ 'a }}", "{{ (a }}", "{{ a) }}", "{# a", "{%"] {
        assert!(tags(open).is_none(), "{open}");
    }
}

#[test]
fn names_are_neither_attributes_nor_text() {
    let source = "{% if a.b is c1 and 'd' in e [ 0 ] . f %}";
    let tags = tags(source).unwrap();
    let names: Vec<&str> = tags[0].names().into_iter().map(|name| name.text).collect();
    assert_eq!(names, ["if", "a", "is", "c1", "and", "in", "e"]);
}

#[test]
fn statements_and_loops_become_parts_with_the_same_marks() {
    let source = "a{% set b = 1 %}c{%- if b -%}d{% endif %}e{%+ for m in messages -%} f {%- endfor %}\ng{{ b }}\n";
    let expected = [
        "a{% set b = 1 %}c{%- if false %}{% endif %}",
        "{%- if b -%}d{% endif %}e{%+ if false %}{% endif %}",
        "m of messages: {% with -%} f {%- endwith %}",
        "{% if false %}{% endif %}\ng{{ b }}\n",
    ];
    assert_eq!(parts(source), expected);
}

#[test]
fn parts_that_call_a_macro_define_it() {
    let source = "{% macro a(x) %}{{ x }}{% endmacro %}{% macro b(x) %}{{ a(x) }}{% endmacro -%}{% macro c() %}{% endmacro %} {% for m in messages %}{{ b(m) }}{% endfor %}";
    let (a, b) =
        ("{% macro a(x) %}{{ x }}{% endmacro %}", "{% macro b(x) %}{{ a(x) }}{% endmacro -%}");
    let expected = [
        "{% if false %}{% endif %} {% if false %}{% endif %}".to_owned(),
        format!("m of messages: {a}{b}{{% with %}}{{{{ b(m) }}}}{{% endwith %}}"),
    ];
    assert_eq!(parts(source), expected);
}

#[test]
fn a_slice_is_given_a_name() {
    let source = "{% for m in messages[1:] %}x{% endfor %}";
    let expected = [
        "{% set mainstay_list_0 = messages | mainstay_rest(1) %}",
        "m of mainstay_list_0: {% with %}x{% endwith %}",
    ];
    assert_eq!(parts(source), expected);
    let source = "{%- set l=messages[12:] -%}{% set a = b[1:] %}{% for m in l %}x{% endfor %}";
    let expected = [
        "{%- set l = messages | mainstay_rest(12) -%}{% set a = b[1:] %}{% if false %}{% endif %}",
        "m of l: {% with %}x{% endwith %}",
    ];
    assert_eq!(parts(source), expected);
}

#[test]
fn loops_that_need_the_engine_are_left_to_it() {
    for tag in ["for m in f(messages)", "for a, b in messages", "for m in messages[::-1]"] {
        assert!(plan(&format!("{{% {tag} %}}x{{% endfor %}}")).is_none(), "{tag}");
    }
    for body in ["{{ loop }}", "{% break %}", "{% else %}", "{% macro a() %}{% endmacro %}"] {
        let source = format!("{{% for m in messages %}}{body}{{% endfor %}}");
        assert!(plan(&source).is_none(), "{body}");
    }
    let nested = "{% for m in messages %}{% for n in m.l %}{% break %}{% endfor %}{% endfor %}";
    assert!(plan(nested).is_some());
}

#[test]
fn what_is_not_understood_is_not_cut() {
    let looped = "{% for m in messages %}x{% endfor %}";
    assert!(plan(looped).is_some());
    for more in [
        "{% include 'a' %}",
        "{% raw %}{{{% endraw %}",
        "{% if a %}",
        "{% endif %}",
        "{% if a %}{% endfor %}",
        "{% unknown %}",
        "{{ self.a() }}",
        "{% set a = namespace() %}{{ [a] }}",
        "{{ namespace() }}",
        "{% set a = namespace %}",
        "{{ mainstay_list_0 }}",
        "{% if a %}{% macro b() %}{% endmacro %}{% endif %}",
        "{{ b() }}{% macro b() %}{% endmacro %}",
    ] {
        assert!(plan(&format!("{looped}{more}")).is_none(), "{more}");
    }
}

#[test]
fn a_macro_that_would_see_the_loop_that_calls_it_is_not_put_into_it() {
    let called = "{% for m in messages %}{{ f(m) }}{% endfor %}";
    let planned = |head: &str, body: &str| {
        plan(&format!("{{% macro f{head} %}}{body}{{% endmacro %}}{called}")).is_some()
    };
    assert!(!planned("()", "{% if loop is defined and loop.index0 > 30 %}X{% endif %}"));
    assert!(!planned("(x, y=loop.index)", "{{ y }}"));
    assert!(!planned("(x)", "{% for y in x %}a{% else %}{{ loop.index }}{% endfor %}"));
    assert!(!planned("(x)", "{% for y in loop.a %}a{% endfor %}"));
    assert!(!planned("(x)", "{% if x %}{% for y in x %}a{% endfor %}{{ loop.last }}{% endif %}"));
    // Of its own loop it may read what it likes.
    assert!(planned("(x)", "{% for y in x %}{% if y %}{{ loop.last }}{% endif %}{% endfor %}"));
    assert!(planned("(loop)", "{{ loop.last }}"));
    // A default is no parameter.
    assert!(!planned("(x, y=m)", "{{ y.role }}"));
    assert!(!planned("(x, y=[\", z\", m])", "{{ y }}"));
    assert!(!planned("(x, y=m)", "{{ m.role }}"));
    assert!(planned("(x, y=1, m=x)", "{{ m.role }}"));
}

#[test]
fn a_loop_with_calls_is_left_to_the_engine() {
    let source = "{% macro f(x) %}{{ caller() }}{% endmacro %}{% for m in messages %}{% if m %}{% call f(1) %}{{ x }}{% endcall %}{% endif %}{% endfor %}";
    assert!(plan(source).is_none());
}

#[test]
fn macros_are_not_copied_without_end() {
    let long = format!("{{% macro f() %}}{}{{% endmacro %}}", "x".repeat(SOURCES_BYTES_USUAL / 8));
    let looped = "{% for m in messages %}{{ f() }}{% endfor %}";
    let parts = |count| plan(&format!("{long}{}", looped.repeat(count)));
    assert!(parts(7).is_some());
    assert!(parts(8).is_none());
}
