//! What expressions yield.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use atoll_model::expression::{Elements, EvaluationError, Expression, Form, Scope, evaluate, evaluate_elements};
use atoll_model::id::{ObjectId, StepIndex};
use atoll_model::value::{DirectoryRef, FileName, FileRef, ListedFile, Type, Value};
use atoll_model::workflow::{Surroundings, Work, Workflow, parse};
use expect_test::{Expect, expect};

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action `{reference}`"))
    }
}

/// A workflow with one expression, which may read inputs of every type and a step that fans out.
fn workflow(expression: &str) -> Result<Workflow, String> {
    let quoted = serde_json::Value::String(format!("${{{{ {expression} }}}}"));
    let source = format!(
        "workflow: w\ninputs: {{ n: integer, x: number, s: string, b: boolean, l: list of string, i: list of integer, o: object, f: file, d: directory, any: list }}\n\
         steps:\n  a-b: {{ run: x, foreach: [1, 2], outputs: {{ f: file, n: integer }} }}\n  one: {{ run: x, outputs: {{ n: integer }} }}\n  \
         t: {{ run: x, foreach: [7, 8], with: {{ v: {quoted} }} }}\n"
    );
    let diagnostics = |diagnostics: Vec<_>| diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    parse("w", &source, &Nothing).map_err(diagnostics)
}

fn expression(text: &str) -> Expression {
    match workflow(text) {
        Ok(workflow) => workflow.steps[2].bindings["v"].clone(),
        Err(diagnostics) => panic!("{text}: {diagnostics}"),
    }
}

#[derive(Default)]
struct Values(BTreeMap<&'static str, Value>);

impl Scope for Values {
    fn input(&self, name: &str) -> Option<Value> {
        self.0.get(name).cloned()
    }

    fn output(&self, step: StepIndex, output: &str) -> Option<Value> {
        match (step.0, output) {
            (0, "n") => Some(Value::list(vec![Value::Integer(5), Value::Integer(6)])),
            (0, "f") => Some(Value::list(vec![file("x.csv", 3), file("y.csv", 0)])),
            (1, "n") => Some(Value::Integer(42)),
            _ => None,
        }
    }

    fn item(&self) -> Option<Value> {
        Some(Value::Integer(8))
    }

    fn index(&self) -> Option<u32> {
        Some(1)
    }
}

fn object(number: u8) -> ObjectId {
    ObjectId::from_digest([number; 32])
}

fn file(name: &str, bytes: u64) -> Value {
    Value::File(FileRef {
        object: object(bytes as u8),
        bytes,
        name: FileName::new(name.as_bytes()).expect("valid"),
        executable: false,
    })
}

fn values() -> Values {
    let listing = ["b.csv", "a.csv", "deep/c.csv", "deep/er/d.csv", "e.txt", "deep.csv/x"]
        .into_iter()
        .zip(1..)
        .map(|(path, number)| ListedFile {
            path: path.as_bytes().to_vec(),
            object: object(number),
            bytes: u64::from(number),
            executable: false,
        })
        .collect();
    let directory = DirectoryRef {
        object: object(99),
        bytes: 1_000,
        files: 6,
        name: FileName::new(b"readings").expect("valid"),
        listing: Some(Arc::new(listing)),
    };
    let text = |text: &str| Value::string(text);
    let object = [("k".to_owned(), Value::Integer(1)), ("none".to_owned(), Value::Null)];
    Values(BTreeMap::from([
        ("n", Value::Integer(4)),
        ("x", Value::Number(2.5)),
        ("s", text("héllo")),
        ("b", Value::Boolean(true)),
        ("l", Value::list(vec![text("b"), text("a"), text("c")])),
        ("i", Value::list([3, 1, 2].map(Value::Integer).to_vec())),
        ("o", Value::Object(Arc::new(object.into_iter().collect()))),
        ("f", file("x.csv", 3)),
        ("d", Value::Directory(directory)),
        ("any", Value::list(vec![Value::Integer(1), text("x"), Value::Null])),
    ]))
}

fn outcome(text: &str) -> String {
    match workflow(text) {
        Err(refused) => format!("refused: {}", refused.split_once(": ").map_or("", |parts| parts.1)),
        Ok(workflow) => {
            let expression = &workflow.steps[2].bindings["v"];
            match evaluate(expression, &values()) {
                Ok(value) => {
                    let name = |value: &Value| {
                        let Value::File(file) = value else { return "directory".into() };
                        format!("file {}", file.name).into()
                    };
                    value.to_json_with(&name).to_string()
                }
                Err(error) => format!("error: {error}"),
            }
        }
    }
}

#[track_caller]
fn check(expressions: &[&str], expected: Expect) {
    let lines: Vec<String> = expressions.iter().map(|text| format!("{text} -> {}\n", outcome(text))).collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn references_and_literals_are_recognised_without_cel() {
    assert_eq!(expression("inputs.n").form, Form::Input("n".into()));
    assert_eq!(expression(" steps.a-b.outputs.f ").form, Form::Output { step: StepIndex(0), output: "f".into() });
    assert_eq!(expression("steps['a-b'].outputs[\"f\"]").form, Form::Output { step: StepIndex(0), output: "f".into() });
    assert_eq!(expression("item").form, Form::Item);
    assert_eq!(expression("index").form, Form::Index);
    assert_eq!(expression("'text'").form, Form::Literal(Value::string("text")));
    assert_eq!(expression("steps.a-b.outputs.f").r#type, Type::List(Some(Box::new(Type::File))));
    assert_eq!(expression("item * 2").r#type, Type::Integer);
    assert!(expression("item * 2").reads_item && expression("index").reads_item);
    assert_eq!(expression("inputs.n + steps.one.outputs.n").reads_steps, [StepIndex(1)]);
    assert_eq!(expression("inputs.n + steps.one.outputs.n").reads_inputs, ["n"]);
}

#[test]
fn operators_follow_cel() {
    check(
        &[
            "1 + 2 * 3",
            "7 / 2",
            "7 % 2",
            "-7 / 2",
            "2.5 * 2.0",
            "inputs.x / 0.0",
            "1 / 0",
            "9223372036854775807 + 1",
            "-(-9223372036854775807 - 1)",
            "1 + 1.0",
            "1 == 1.0",
            "1 < 1.5",
            "'a' + 'b'",
            "'a' < 'b'",
            "'a' == 1",
            "inputs.any[0] == 'x'",
            "[1] + [2, 3]",
            "true && false",
            "false && 1 / 0 > 0",
            "1 / 0 > 0 || true",
            "true && 1 / 0 > 0",
            "!inputs.b",
            "inputs.b ? 1 : 2",
            "inputs.n > 3 ? 'many' : 'few'",
            "2 in inputs.i",
            "'k' in inputs.o",
            "inputs.o.k",
            "inputs.o['k']",
            "inputs.o.missing",
            "has(inputs.o.k)",
            "has(inputs.o.none)",
            "has(inputs.o.missing)",
            "has(inputs.n)",
            "inputs.i[0]",
            "inputs.i[3]",
            "inputs.i[-1]",
            "{'a': 1, 'b': [inputs.n]}",
            "{'a': 1, 'a': 2}",
            "[1, 2] == [1, 2.0]",
            "null == inputs.any[2]",
            "item + index",
            "[1, [2]] != [1, [3]]",
        ],
        expect![[r#"
            1 + 2 * 3 -> 7
            7 / 2 -> 3
            7 % 2 -> 1
            -7 / 2 -> -3
            2.5 * 2.0 -> 5.0
            inputs.x / 0.0 -> error: the result is no finite number
            1 / 0 -> error: division by zero
            9223372036854775807 + 1 -> error: the result is no integer of 64 bits
            -(-9223372036854775807 - 1) -> error: the result is no integer of 64 bits
            1 + 1.0 -> refused: `+` needs two integers, two numbers, two strings or two lists (convert with `double(…)`, `string(…)`), not an integer and a number
            1 == 1.0 -> true
            1 < 1.5 -> true
            'a' + 'b' -> "ab"
            'a' < 'b' -> true
            'a' == 1 -> refused: `==` needs two values that can be equal, not a string and an integer
            inputs.any[0] == 'x' -> false
            [1] + [2, 3] -> [1,2,3]
            true && false -> false
            false && 1 / 0 > 0 -> false
            1 / 0 > 0 || true -> true
            true && 1 / 0 > 0 -> error: division by zero
            !inputs.b -> false
            inputs.b ? 1 : 2 -> 1
            inputs.n > 3 ? 'many' : 'few' -> "many"
            2 in inputs.i -> true
            'k' in inputs.o -> true
            inputs.o.k -> 1
            inputs.o['k'] -> 1
            inputs.o.missing -> error: an object has no field `missing`
            has(inputs.o.k) -> true
            has(inputs.o.none) -> false
            has(inputs.o.missing) -> false
            has(inputs.n) -> true
            inputs.i[0] -> 3
            inputs.i[3] -> error: there is no element 3 in a list of 3
            inputs.i[-1] -> error: there is no element -1 in a list of 3
            {'a': 1, 'b': [inputs.n]} -> {"a":1,"b":[4]}
            {'a': 1, 'a': 2} -> error: the key `a` is given twice
            [1, 2] == [1, 2.0] -> true
            null == inputs.any[2] -> true
            item + index -> 9
            [1, [2]] != [1, [3]] -> true
        "#]],
    );
}

#[test]
fn macros_go_over_lists_and_keys() {
    check(
        &[
            "inputs.i.map(x, x * 2)",
            "inputs.i.map(x, x > 1, x * 2)",
            "inputs.i.filter(x, x > 1)",
            "inputs.i.all(x, x > 0)",
            "inputs.i.exists(x, x > 2)",
            "inputs.i.exists(x, 1 / (x - 1) > 0)",
            "inputs.i.all(x, 1 / (x - 1) > 0)",
            "inputs.i.exists_one(x, x == 1)",
            "inputs.o.map(k, k)",
            "inputs.i.map(x, inputs.i.map(y, x * y))",
            "inputs.i.map(x, [x].map(x, x + 1))",
            "inputs.n.map(x, x)",
            "inputs.i.map(x, [x])",
            "inputs.i.filter(x, x)",
            "steps.a-b.outputs.f.filter(f, f.size > 0)",
            "steps['a-b'].outputs.f.filter(f, f.size > 0)",
            "steps['a-b'].outputs.f.map(f, f.name)",
        ],
        expect![[r#"
            inputs.i.map(x, x * 2) -> [6,2,4]
            inputs.i.map(x, x > 1, x * 2) -> [6,4]
            inputs.i.filter(x, x > 1) -> [3,2]
            inputs.i.all(x, x > 0) -> true
            inputs.i.exists(x, x > 2) -> true
            inputs.i.exists(x, 1 / (x - 1) > 0) -> true
            inputs.i.all(x, 1 / (x - 1) > 0) -> false
            inputs.i.exists_one(x, x == 1) -> true
            inputs.o.map(k, k) -> ["k","none"]
            inputs.i.map(x, inputs.i.map(y, x * y)) -> [[9,3,6],[3,1,2],[6,2,4]]
            inputs.i.map(x, [x].map(x, x + 1)) -> [[4],[2],[3]]
            inputs.n.map(x, x) -> refused: a macro goes over a list or an object, not over an integer
            inputs.i.map(x, [x]) -> [[3],[1],[2]]
            inputs.i.filter(x, x) -> refused: the condition of a macro is true or false, not an integer
            steps.a-b.outputs.f.filter(f, f.size > 0) -> refused: `steps.a` is followed by one of its outputs (write `steps.a.outputs.name`; a name with a `-` in it is written `steps['a-b']`)
            steps['a-b'].outputs.f.filter(f, f.size > 0) -> ["file x.csv"]
            steps['a-b'].outputs.f.map(f, f.name) -> ["x.csv","y.csv"]
        "#]],
    );
}

#[test]
fn functions_do_what_they_say() {
    check(
        &[
            "size(inputs.s)",
            "inputs.l.size()",
            "size(inputs.f)",
            "inputs.f.name",
            "inputs.d.files",
            "inputs.d.size",
            "inputs.f.files",
            "inputs.s.contains('ll')",
            "inputs.s.startsWith('h')",
            "inputs.s.endsWith('o')",
            "inputs.s.matches('^h.llo$')",
            "matches(inputs.s, 'x')",
            "int('12')",
            "int('x')",
            "int(2.9)",
            "int(1e300)",
            "double(3)",
            "double('2.5')",
            "string(2)",
            "string(2.0)",
            "string(true)",
            "bool('true')",
            "bool('yes')",
            "'aBc'.lowerAscii()",
            "'aBc'.upperAscii()",
            "' a '.trim()",
            "'a-b-c'.replace('-', '+')",
            "'a,b'.split(',')",
            "inputs.l.join(',')",
            "inputs.i.join()",
            "inputs.l.sort()",
            "inputs.i.reverse()",
            "[1, 2, 1, 2.0].distinct()",
            "[[1], [2, 3]].flatten()",
            "min(3, 1, 2)",
            "max(inputs.i)",
            "min([])",
            "sum(inputs.i)",
            "sum([])",
            "inputs.any.sort()",
            "[2.5, 1].sort()",
            "inputs.l.sum()",
            "range(3)",
            "range(-1)",
            "range(3).map(i, i * i)",
            "min('a')",
            "size(1)",
        ],
        expect![[r#"
            size(inputs.s) -> 5
            inputs.l.size() -> 3
            size(inputs.f) -> 3
            inputs.f.name -> "x.csv"
            inputs.d.files -> 6
            inputs.d.size -> 1000
            inputs.f.files -> refused: a file has no field `files` (known: `name`, `size`)
            inputs.s.contains('ll') -> true
            inputs.s.startsWith('h') -> true
            inputs.s.endsWith('o') -> true
            inputs.s.matches('^h.llo$') -> true
            matches(inputs.s, 'x') -> false
            int('12') -> 12
            int('x') -> error: "x" is no integer
            int(2.9) -> 2
            int(1e300) -> error: `int` cannot take a number
            double(3) -> 3.0
            double('2.5') -> 2.5
            string(2) -> "2"
            string(2.0) -> "2"
            string(true) -> "true"
            bool('true') -> true
            bool('yes') -> error: "yes" is neither true nor false
            'aBc'.lowerAscii() -> "abc"
            'aBc'.upperAscii() -> "ABC"
            ' a '.trim() -> "a"
            'a-b-c'.replace('-', '+') -> "a+b+c"
            'a,b'.split(',') -> ["a","b"]
            inputs.l.join(',') -> "b,a,c"
            inputs.i.join() -> "312"
            inputs.l.sort() -> ["a","b","c"]
            inputs.i.reverse() -> [2,1,3]
            [1, 2, 1, 2.0].distinct() -> [1,2]
            [[1], [2, 3]].flatten() -> [1,2,3]
            min(3, 1, 2) -> 1
            max(inputs.i) -> 3
            min([]) -> error: `min` of nothing has no value
            sum(inputs.i) -> 6
            sum([]) -> 0
            inputs.any.sort() -> error: `sort` cannot take an integer and a string
            [2.5, 1].sort() -> [1,2.5]
            inputs.l.sum() -> error: `sum` cannot take a string
            range(3) -> [0,1,2]
            range(-1) -> error: `range` takes a number from 0 to 10000000, not -1
            range(3).map(i, i * i) -> [0,1,4]
            min('a') -> refused: `min` needs numbers, or a list of them, not a string
            size(1) -> refused: `size` needs a list, an object, a string, a file or a directory, not an integer
        "#]],
    );
}

#[test]
fn files_of_a_directory_are_listed_in_the_order_of_their_paths() {
    check(
        &[
            "files(inputs.d)",
            "files(inputs.d, '*.csv')",
            "files(inputs.d, '**/*.csv')",
            "files(inputs.d, 'deep/**')",
            "inputs.d.files('[ab].*')",
            "files(inputs.d, '[!a].csv')",
            "files(inputs.d, '?.txt')",
            "files(inputs.d, '*/*/*')",
            "files(inputs.d, 'nothing')",
            "files(inputs.d, '[')",
            "files(inputs.f)",
            "files(inputs.d, '*.csv').map(f, f.size)",
        ],
        expect![[r#"
            files(inputs.d) -> ["file a.csv","file b.csv","file x","file c.csv","file d.csv","file e.txt"]
            files(inputs.d, '*.csv') -> ["file a.csv","file b.csv"]
            files(inputs.d, '**/*.csv') -> ["file a.csv","file b.csv","file c.csv","file d.csv"]
            files(inputs.d, 'deep/**') -> ["file c.csv","file d.csv"]
            inputs.d.files('[ab].*') -> ["file a.csv","file b.csv"]
            files(inputs.d, '[!a].csv') -> ["file b.csv"]
            files(inputs.d, '?.txt') -> ["file e.txt"]
            files(inputs.d, '*/*/*') -> ["file d.csv"]
            files(inputs.d, 'nothing') -> []
            files(inputs.d, '[') -> refused: the pattern "[" has a `[` without its `]`
            files(inputs.f) -> refused: `files` needs a directory, and a pattern like "*.csv", not a file
            files(inputs.d, '*.csv').map(f, f.size) -> [2,1]
        "#]],
    );
}

#[test]
fn what_is_not_known_is_refused() {
    check(
        &[
            "foo(1)",
            "inputs.s.nope()",
            "range(1, 2)",
            "inputs",
            "steps.one",
            "steps.one.n",
            "steps.one.result.n",
            "x",
            "inputs.s.size",
            "has(inputs)",
            "inputs.l.map(1, 2)",
            "a.b.c",
            "duration('1s')",
            "b'x'",
            "Foo{a: 1}",
        ],
        expect![[r#"
            foo(1) -> refused: there is no function `foo` (known: `size`, `contains`, `startsWith`, `endsWith`, `matches`, `int`, `double`, `string`, `bool`, `lowerAscii`, `upperAscii`, `trim`, `replace`, `split`, `join`, `sort` and 14 more)
            inputs.s.nope() -> refused: there is no function `nope` (known: `size`, `contains`, `startsWith`, `endsWith`, `matches`, `int`, `double`, `string`, `bool`, `lowerAscii`, `upperAscii`, `trim`, `replace`, `split`, `join`, `sort` and 14 more)
            range(1, 2) -> refused: `range` takes 1 argument, not 2
            inputs -> refused: `inputs` is followed by the name of an input (write `inputs.name`)
            steps.one -> refused: `steps.one` is followed by one of its outputs (write `steps.one.outputs.name`; a name with a `-` in it is written `steps['a-b']`)
            steps.one.n -> refused: `steps.one` is followed by one of its outputs (write `steps.one.outputs.name`; a name with a `-` in it is written `steps['a-b']`)
            steps.one.result.n -> refused: a step has no `result` (write `steps.one.outputs.n`)
            x -> refused: there is nothing called `x` here (known: `inputs`, `steps`, `item`, `index`)
            inputs.s.size -> refused: a string has no field `size` (write `.size()`)
            has(inputs) -> refused: the expression cannot be read: invalid argument to has() macro
            inputs.l.map(1, 2) -> refused: the expression cannot be read: argument must be a simple name
            a.b.c -> refused: there is nothing called `a` here (known: `inputs`, `steps`, `item`, `index`)
            duration('1s') -> refused: there is no function `duration` (known: `size`, `contains`, `startsWith`, `endsWith`, `matches`, `int`, `double`, `string`, `bool`, `lowerAscii`, `upperAscii`, `trim`, `replace`, `split`, `join`, `sort` and 14 more)
            b'x' -> refused: there are no byte strings here (leave out the `b` before the quote)
            Foo{a: 1} -> refused: there is no type `Foo` (an object is written with quoted keys: {'name': value})
        "#]],
    );
}

#[test]
fn an_expression_may_cost_only_so_much() {
    let costly = [
        "range(10000000).map(x, x)",
        "range(3000).map(x, range(3000).map(y, x * y))",
        "range(300).exists(a, range(300).exists(b, range(300).exists(c, a + b + c < 0)))",
        "[1, 2, 3, 4, 5, 6, 7, 8].map(a, 'xxxxxxxxxxxxxxxx'.replace('x', 'xxxxxxxxxxxxxxxx').replace('x', 'xxxxxxxxxxxxxxxx').replace('x', 'xxxxxxxxxxxxxxxx').replace('x', 'xxxxxxxxxxxxxxxx').replace('x', 'xxxxxxxxxxxxxxxx'))",
        "range(4000).distinct()",
    ];
    for text in costly {
        let error = evaluate(&expression(text), &values()).expect_err(text);
        assert_eq!(error.message, "the expression costs too much to evaluate", "{text}");
    }
}

#[test]
fn an_expression_is_bounded_in_length_and_depth() {
    let deep = format!("{}1{}", "(".repeat(900), ")".repeat(900));
    let chains = [
        deep,
        vec!["inputs.n"; 200].join("+"),
        "inputs.b?1:".repeat(180) + "2",
        "!".repeat(2_000) + "true",
        "[".repeat(1_000),
    ];
    for text in chains {
        // Either it has a value or it is refused; no stack overflows.
        let _ = workflow(&text).map(|workflow| evaluate(&workflow.steps[2].bindings["v"], &values()));
    }
    assert!(workflow(&"1+".repeat(1_100)).expect_err("too long").contains("longer than"));
    assert!(workflow(&vec!["inputs.n"; 150].join("+")).expect_err("too deep").contains("nested"));
}

#[test]
fn ranges_are_not_written_out() {
    let started = Instant::now();
    let elements = evaluate_elements(&expression("range(10000000)"), &values()).expect("a range");
    assert_eq!(elements, Elements::Range { count: 10_000_000 });
    assert_eq!(elements.get(9_999_999), Some(Value::Integer(9_999_999)));
    assert_eq!(elements.get(10_000_000), None);
    assert!(started.elapsed().as_secs() < 5);
    let elements = evaluate_elements(&expression("range(inputs.n)"), &values()).expect("a range");
    assert_eq!(elements.len(), 4);
    let message = |result: Result<Elements, EvaluationError>| result.expect_err("refused").message;
    assert_eq!(
        message(evaluate_elements(&expression("range(10000001)"), &values())),
        "`range` takes a number from 0 to 10000000, not 10000001"
    );
    assert_eq!(
        message(evaluate_elements(&expression("inputs.n"), &values())),
        "a step fans out over a list, not over an integer"
    );
}

#[test]
fn a_list_is_shared_and_not_copied() {
    let values = values();
    let Value::List(list) = &values.0["l"] else { panic!("a list") };
    let Ok(Elements::List(elements)) = evaluate_elements(&expression("inputs.l"), &values) else { panic!("a list") };
    assert!(Arc::ptr_eq(list, &elements));
    let Ok(Value::List(chosen)) = evaluate(&expression("inputs.b ? inputs.l : []"), &values) else { panic!("a list") };
    assert!(Arc::ptr_eq(list, &chosen));
}

#[test]
fn a_hundred_thousand_elements_cost_one_compilation() {
    let expression = expression("'name-' + string(item) + (index > 3 ? 'x' : 'y')");
    let started = Instant::now();
    for _ in 0..100_000 {
        evaluate(&expression, &values_for_speed()).expect("a value");
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

fn values_for_speed() -> Values {
    Values::default()
}

#[test]
fn a_listing_of_a_hundred_thousand_files_can_be_filtered() {
    let listing = (0..100_000u32)
        .map(|number| ListedFile {
            path: format!("part-{number:06}.csv").into_bytes(),
            object: object(1),
            bytes: u64::from(number),
            executable: false,
        })
        .collect();
    let Value::Directory(directory) = &values().0["d"].clone() else { panic!("a directory") };
    let directory = DirectoryRef { listing: Some(Arc::new(listing)), ..directory.clone() };
    let values = Values(BTreeMap::from([("d", Value::Directory(directory))]));
    let elements = evaluate_elements(
        &expression("files(inputs.d, '*.csv').filter(f, f.size >= 50000 && f.name.endsWith('.csv'))"),
        &values,
    );
    assert_eq!(elements.expect("within its cost").len(), 50_000);
}

#[test]
fn an_expression_survives_the_journal() {
    let expression = expression("files(inputs.d, '*.csv').size() + steps.one.outputs.n");
    let encoded = postcard::to_allocvec(&expression).expect("encodes");
    let decoded: Expression = postcard::from_bytes(&encoded).expect("decodes");
    assert_eq!(decoded, expression);
    assert_eq!(evaluate(&decoded, &values()).expect("a value"), Value::Integer(44));
}

#[test]
fn texts_with_expressions_and_nested_values_are_put_together() {
    let source = "workflow: w\ninputs: { n: integer, s: string, l: list }\nsteps:\n  a:\n    run: x\n    with:\n      \
                  t: \"n=${{ inputs.n }}, s=${{ inputs.s }}, l=${{ inputs.l }}, ${{ {'a': {'b': '}}'}} }}!\"\n      \
                  o: { n: \"${{ inputs.n }}\", list: [1, \"${{ inputs.s }}\", two], plain: { a: 1.5 } }\n      p: { a: [1, null, ~] }\n      \
                  b: |\n        ${{ inputs.n }}\n";
    let workflow = parse("w", source, &Nothing).expect("valid");
    let scope = Values(BTreeMap::from([
        ("n", Value::Integer(4)),
        ("s", Value::string("x")),
        ("l", Value::list(vec![Value::Integer(1), Value::string("y")])),
    ]));
    let bindings = &workflow.steps[0].bindings;
    let json = |name: &str| evaluate(&bindings[name], &scope).expect("a value").to_json().to_string();
    expect![[r#"
        "n=4, s=x, l=[1,\"y\"], {\"a\":{\"b\":\"}}\"}}!"
        {"n":4,"list":[1,"x","two"],"plain":{"a":1.5}}
        {"a":[1,null,null]}
        4"#]]
    .assert_eq(&format!("{}\n{}\n{}\n{}", json("t"), json("o"), json("p"), json("b")));
    assert!(matches!(bindings["p"].form, Form::Literal(_)));
    assert_eq!(bindings["b"].form, Form::Input("n".into()));
}
