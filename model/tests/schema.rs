//! The JSON Schemas agree with the parser.

mod samples;

use atoll_model::action;
use atoll_model::workflow::{Surroundings, Work, action_schema, parse, workflow_schema};
use serde_json::Value;

const EVERYTHING: &str = include_str!("samples/everything.yaml");
const EARTHQUAKES: &str = include_str!("../../examples/earthquakes/workflow.yaml");
const CLEAN: &str = include_str!("samples/clean.action.yaml");

struct Clean;

impl Surroundings for Clean {
    fn action(&self, _: &str) -> Result<Work, String> {
        Ok(action::parse("action.yaml", CLEAN).expect("valid").into_work(None, 0))
    }
}

/// The workflow file as JSON, as an editor sees it.
fn json(yaml: &str) -> Value {
    atoll_model::yaml_to_json(yaml).expect("valid YAML")
}

fn problems(schema: &Value, instance: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).expect("a valid schema");
    validator.iter_errors(instance).map(|error| error.to_string()).collect()
}

#[test]
fn the_samples_fit_the_schema_of_the_workflow_file() {
    for sample in [samples::contract(), EVERYTHING, EARTHQUAKES] {
        assert_eq!(problems(&workflow_schema(), &json(sample)), Vec::<String>::new());
    }
    assert_eq!(problems(&action_schema(), &json(CLEAN)), Vec::<String>::new());
    for said in ["image: ./image.tar", "image: ./image.tar\nnetwork: true\ncommand: [x]"] {
        let container = format!("name: a\nversion: '1'\nruntime: container\n{said}\n");
        assert_eq!(problems(&action_schema(), &json(&container)), Vec::<String>::new());
    }
}

#[test]
fn what_the_parser_refuses_for_its_shape_the_schema_refuses_too() {
    let broken = [
        "workflow: w\n",
        "workflow: 'a b'\nsteps: { a: { run: x } }\n",
        "workflow: w\nstep: { a: { run: x } }\n",
        "workflow: w\nsteps: { a: { run: x, action: y } }\n",
        "workflow: w\nsteps: { a: { } }\n",
        "workflow: w\nsteps: { a: { run: x, executor: slurm } }\n",
        "workflow: w\nsteps: { a: { run: x, runn: y } }\n",
        "workflow: w\nsteps: { a: { run: x, retry: 0 } }\n",
        "workflow: w\nsteps: { a: { run: x, resources: { memory: 1GiB }, retry: { attempts: 2, memory: 2 } } }\n",
        "workflow: w\nsteps: { a: { run: x, resources: { mem: 1 } } }\n",
        "workflow: w\nsteps: { a: { run: x, outputs: { o: fil } } }\n",
        "workflow: w\nsteps: { a: { run: x, with: { a-b: 1 } } }\n",
        "workflow: w\nsteps: { a: { run: x, site: {} } }\n",
        "workflow: w\nsteps: { a: { run: x, site: Edge } }\n",
        "workflow: w\ninputs: { a: { default: 1 } }\nsteps: { a: { run: x } }\n",
        "workflow: w\nsteps: { a: { run: x } }\nplacement: [{ push: sometimes }]\n",
        "workflow: w\npriority: 101\nsteps: { a: { run: x } }\n",
        "workflow: w\nconcurrency: { executions: 0 }\nsteps: { a: { run: x } }\n",
        "workflow: w\nconcurrency: { steps: 1 }\nsteps: { a: { run: x } }\n",
        "workflow: w\nsteps: { a: { run: x, priority: high } }\n",
        "workflow: w\nsteps: { a: { run: x, max_parallel: 0 } }\n",
        "workflow: w\ninputs: { f: file }\noutputs: { f: { value: '${{ inputs.f }}', publish: { path: /x } } }\n",
        "workflow: w\ninputs: { f: file }\noutputs: { f: { publish: { url: 's3://b/x' } } }\n",
        "workflow: w\ninputs: { f: file }\noutputs: { f: { value: '${{ inputs.f }}', publish: { url: 'https://b/x' } } }\n",
    ];
    for source in broken {
        assert!(parse("w", source, &Clean).is_err(), "{source}");
        assert!(!problems(&workflow_schema(), &json(source)).is_empty(), "{source}");
    }
}

#[test]
fn what_the_parser_refuses_of_an_action_for_its_shape_the_schema_refuses_too() {
    let broken = [
        "name: a\nversion: '1'\n",
        "name: 'a b'\nversion: '1'\ncommand: [x]\n",
        "name: a\nversion: 'a b'\ncommand: [x]\n",
        "name: a\nversion: '1'\ncommand: x\n",
        "name: a\nversion: '1'\ncommand: []\n",
        "name: a\nversion: '1'\ncommand: [x]\nkind: source\n",
        "name: a\nversion: '1'\ncommand: [x]\nruntime: python\n",
        "name: a\nversion: '1'\nruntime: container\n",
        "name: a\nversion: '1'\nruntime: container\nimage: docker.io/library/debian:12\n",
        "name: a\nversion: '1'\ncommand: [x]\nimage: ./image.tar\n",
        "name: a\nversion: '1'\ncommand: [x]\nnetwork: perhaps\n",
        "name: a\nversion: '1'\ncommand: [x]\nlabels: { a=b: c }\n",
        "name: a\nversion: '1'\ncommand: [x]\nlabels: { a: [b] }\n",
        "name: a\nversion: '1'\ncommand: [x]\ninputs: { a-b: file }\n",
        "name: a\nversion: '1'\ncommand: [x]\noutputs: { o: fil }\n",
        "name: a\nversion: '1'\ncommand: [x]\nresources: { mem: 1 }\n",
        "name: a\nversion: '1'\ncommand: [x]\nauthor: me\n",
    ];
    for source in broken {
        assert!(action::parse("action.yaml", source).is_err(), "{source}");
        assert!(!problems(&action_schema(), &json(source)).is_empty(), "{source}");
    }
}
