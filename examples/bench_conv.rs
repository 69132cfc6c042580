use std::time::Instant;
use vnca::array::Array;
use vnca::ir::{Graph, Sym, ops::conv::Window};
use vnca::lower::{Target, lower};
use vnca::random::Key;
use vnca::runtime::{Device, Mesh};
use vnca::shape::Shape;

fn time(name: &str, macs: f64, dims: &[&[usize]], f: impl for<'g> Fn(&[Sym<'g>]) -> Sym<'g>) {
    let g = Graph::new("bench");
    let x: Vec<Sym> =
        dims.iter().enumerate().map(|(i, d)| g.input(&format!("x{i}"), &Shape::f32(d))).collect();
    let y = f(&x);
    let f = g.finish(&[("y".into(), y)], &[]).unwrap();
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    for t in [Target::Native, Target::Cpu] {
        let exe = mesh.compile(lower(&f, t, 1).unwrap()).unwrap();
        let args: Vec<_> = dims
            .iter()
            .map(|d| {
                mesh.replicate(&Array::new(d, &Key::new(1).uniform(d.iter().product(), -1.0, 1.0))).unwrap()
            })
            .collect();
        let mut best = f64::MAX;
        for _ in 0..4 {
            let s = Instant::now();
            let out = exe.call(args.iter().map(|a| a.into()).collect()).unwrap();
            out[0].get(0).unwrap();
            best = best.min(s.elapsed().as_secs_f64());
        }
        println!("{name:28} {t:?} {:8.2} ms {:8.1} GFLOP/s useful", best * 1e3, 2.0 * macs / best * 1e-9);
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("parts") {
        for (i, o) in [(256usize, 512usize), (128, 256), (512, 256), (64, 128)] {
            time(&format!("turn {i} {o}"), (25 * i * o) as f64, &[&[5, 5, i, o]], |x| {
                x[0].reverse(&[0, 1]).transpose(&[0, 1, 3, 2])
            });
            time(&format!("transpose {i} {o}"), (25 * i * o) as f64, &[&[5, 5, i, o]], |x| {
                x[0].transpose(&[0, 1, 3, 2])
            });
            time(&format!("tap slices {i} {o}"), (25 * i * o) as f64, &[&[5, 5, i, o]], |x| {
                x[0].slice_strided(&[0, 0, 0, 0], &[5, 5, i, o], &[2, 2, 1, 1])
            });
            time(
                &format!("adamlike {i} {o}"),
                (25 * i * o) as f64,
                &[&[5, 5, i, o], &[5, 5, i, o], &[5, 5, i, o]],
                |x| x[0] + (x[1] * 0.9) / ((x[2] * 0.1 + 0.2).sqrt() + 1e-8),
            );
            time(&format!("norm {i} {o}"), (25 * i * o) as f64, &[&[5, 5, i, o]], |x| {
                x[0].square().sum_all()
            });
            time(&format!("copy {i} {o}"), (25 * i * o) as f64, &[&[5, 5, i, o]], |x| x[0] + 1.0);
        }
        time("elu 1M", 32.0 * 32.0 * 32.0 * 32.0, &[&[32, 32, 32, 32]], |x| x[0].elu());
        return;
    }
    time("dot 2048^3", 2048f64.powi(3), &[&[2048, 2048], &[2048, 2048]], |x| {
        x[0].dot(x[1]).slice(&[0, 0], &[1, 1])
    });
    let b = 32usize;
    for (h, i, o, s) in [
        (32usize, 1usize, 32usize, 1usize),
        (32, 32, 64, 2),
        (16, 64, 128, 2),
        (8, 128, 256, 2),
        (4, 256, 512, 2),
    ] {
        let ho = h / s;
        let macs = (b * ho * ho * 25 * i * o) as f64;
        let w = Window::new(s, (2, 2));
        time(&format!("enc fwd {h} {i}->{o}"), macs, &[&[b, h, h, i], &[5, 5, i, o]], |x| x[0].conv(x[1], w));
        time(&format!("enc dx {h} {i}->{o}"), macs, &[&[b, h, h, i], &[5, 5, i, o], &[b, ho, ho, o]], |x| {
            vnca::ir::pullback(&[(x[0].conv(x[1], w), x[2])], &[x[0]])[0]
        });
        time(&format!("enc dw {h} {i}->{o}"), macs, &[&[b, h, h, i], &[b, ho, ho, o]], |x| {
            x[0].conv_weight_grad(x[1], w, [5, 5])
        });
    }
    for (h, i, o) in [(2usize, 512usize, 256usize), (4, 256, 128), (8, 128, 64), (16, 64, 32)] {
        let macs = (b * h * h * 25 * i * o) as f64;
        let w = Window::transposed(5, 2, 2, 1);
        time(&format!("dec fwd {h} {i}->{o}"), macs, &[&[b, h, h, i], &[5, 5, i, o]], |x| x[0].conv(x[1], w));
        time(
            &format!("dec dx {h} {i}->{o}"),
            macs,
            &[&[b, h, h, i], &[5, 5, i, o], &[b, 2 * h, 2 * h, o]],
            |x| vnca::ir::pullback(&[(x[0].conv(x[1], w), x[2])], &[x[0]])[0],
        );
        time(&format!("dec dw {h} {i}->{o}"), macs, &[&[b, h, h, i], &[b, 2 * h, 2 * h, o]], |x| {
            x[0].conv_weight_grad(x[1], w, [5, 5])
        });
    }
    let w = Window::transposed(5, 1, 4, 0);
    let macs = (b * 28 * 28 * 25 * 32) as f64;
    time("dec4 fwd", macs, &[&[b, 32, 32, 32], &[5, 5, 32, 1]], |x| x[0].conv(x[1], w));
    time("dec4 dx", macs, &[&[b, 32, 32, 32], &[5, 5, 32, 1], &[b, 28, 28, 1]], |x| {
        vnca::ir::pullback(&[(x[0].conv(x[1], w), x[2])], &[x[0]])[0]
    });
    time("dec4 dw", macs, &[&[b, 32, 32, 32], &[b, 28, 28, 1]], |x| x[0].conv_weight_grad(x[1], w, [5, 5]));
    let macs = (4 * 32 * 32 * 9 * 128 * 128) as f64;
    let w = Window::new(1, (1, 1));
    time("nca fwd 128", macs, &[&[4, 32, 32, 128], &[3, 3, 128, 128]], |x| x[0].conv(x[1], w));
    time("nca dx 128", macs, &[&[4, 32, 32, 128], &[3, 3, 128, 128], &[4, 32, 32, 128]], |x| {
        vnca::ir::pullback(&[(x[0].conv(x[1], w), x[2])], &[x[0]])[0]
    });
    time("nca dw 128", macs, &[&[4, 32, 32, 128], &[4, 32, 32, 128]], |x| {
        x[0].conv_weight_grad(x[1], w, [3, 3])
    });
}
