use std::time::Instant;
use vnca::array::Array;
use vnca::lower::{Target, lower};
use vnca::model::{Kind, Model, params::init};
use vnca::random::Key;
use vnca::runtime::{Arg, Buffers, Device, Mesh};
use vnca::shape::{DType, Shape};
use vnca::train::{optimiser::Optimiser, order::chunk_order, step::StepSpec};

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let kind: Kind = a[1].parse().unwrap();
    let batch: usize = a[2].parse().unwrap();
    let steps: usize = a[3].parse().unwrap();
    let model = Model::new(kind, None).unwrap();
    let spec = StepSpec {
        model,
        optimiser: Optimiser::REPORT,
        replicas: 1,
        batch,
        chunk: steps,
        images: 1000,
        beta: 1.0,
    };
    let f = spec.function().unwrap();
    let t = Instant::now();
    let p = lower(&f, Target::Cpu, 1).unwrap();
    println!("lower {:?} bytes {}", t.elapsed(), p.module.len());
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    let t = Instant::now();
    let exe = mesh.compile(p).unwrap();
    println!("compile {:?}", t.elapsed());
    let leaves = model.leaves();
    let t = Instant::now();
    let mut state: Vec<Buffers> = leaves
        .iter()
        .zip(init(&leaves, Key::new(0)))
        .map(|(l, a)| mesh.replicate(&l.to_inner(&a)).unwrap())
        .collect();
    println!("init {:?}", t.elapsed());
    for e in &spec.state()[leaves.len()..] {
        let mut arr = Array::zeros(&e.shape);
        if e.shape.dtype == DType::Pred {
            arr = Array::from_bytes(e.shape.clone(), vec![1]).unwrap();
        }
        state.push(mesh.replicate(&arr).unwrap());
    }
    let px: Vec<u8> = Key::new(3).bernoulli(1000 * 784, |_| 0.13).into_iter().map(u8::from).collect();
    let images = mesh.replicate(&Array::new(&[1000, 28, 28], &px)).unwrap();
    let order = chunk_order(Key::new(1), 1000, batch, steps).images;
    let order = mesh.replicate(&Array::new(&[steps, batch], &order)).unwrap();
    let _ = Shape::f32(&[]);
    for _ in 0..3 {
        let s0 = mesh.replicate(&Array::scalar(0i32)).unwrap();
        let tr = mesh.replicate(&Array::scalar(steps as i32)).unwrap();
        let mut args: Vec<Arg<'_>> = state.drain(..).map(Arg::from).collect();
        args.push((&images).into());
        args.push((&order).into());
        args.push((&s0).into());
        args.push((&tr).into());
        let t = Instant::now();
        let mut out = exe.call(args).unwrap();
        let gn = out.pop().unwrap().get(0).unwrap().to_vec::<f32>();
        let loss = out.pop().unwrap().get(0).unwrap().to_vec::<f32>();
        println!(
            "{:.1} ms/step loss {:?} norm {:?}",
            t.elapsed().as_secs_f64() * 1e3 / steps as f64,
            loss.last(),
            gn.last()
        );
        state = out;
    }
}
