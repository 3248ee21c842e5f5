"""Consistency Trajectory Models (arXiv 2310.02279) in the most obvious PyTorch: the yardstick of `ctm bench teach`.

It needs torch alone and takes no short cut. tests/parity/test_reference.py holds it against numbers of the official code.

A network is any module F(c_in(t)*x, t, s, labels) with a `last_layer`; a teacher's s is None. x (B, ...), levels t, u, s (B,),
labels (B,), -1 for none.
"""

import copy
import itertools

import torch


def column(level, x):
    """A level (B,) as (B, 1, ..., 1)."""
    return level.reshape(-1, *[1] * (x.dim() - 1))


def scalings(t, sigma_data):
    """c_skip, c_out, c_in of EDM (arXiv 2206.00364, table 1)."""
    total = t**2 + sigma_data**2
    return sigma_data**2 / total, t * sigma_data / total.sqrt(), 1 / total.sqrt()


def g(network, x, t, s, labels, sigma_data):
    """g(x, t, s) = c_skip*x + c_out*F(c_in*x, t, s); with s = t it is the denoiser."""
    c_skip, c_out, c_in = scalings(column(t, x), sigma_data)
    return c_skip * x + c_out * network(c_in * x, t, s, labels)


def jump(network, x, t, s, labels, sigma_data):
    """G(x, t, s) = (s/t)*x + (1 - s/t)*g(x, t, s)."""
    ratio = column(s / t, x)
    return ratio * x + (1 - ratio) * g(network, x, t, s, labels, sigma_data)


def karras_grid(points, sigma_min, sigma_max, rho=7.0):
    """Levels from sigma_max down to sigma_min."""
    xi = torch.linspace(0, 1, points, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + xi * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def heun_walk(teacher, x, path, labels, sigma_data):
    """The teacher's flow dx/dt = (x - D)/t along path (k + 1, B) by Heun's method."""
    for t, s in itertools.pairwise(path):
        first = (x - g(teacher, x, t, None, labels, sigma_data)) / column(t, x)
        euler = x + column(s - t, x) * first
        second = (euler - g(teacher, euler, s, None, labels, sigma_data)) / column(s, x)
        x = x + column(s - t, x) * (first + second) / 2
    return x


class Plain:
    """Student, EMA target, averaged weights, teacher and optimiser: soft consistency matching with denoising score matching."""

    def __init__(
        self, student, teacher, *, sigma_data, sigma_min, sigma_max, grid_points, most_steps, lr, target_ema, ema
    ):
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.target, self.average = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max
        self.grid, self.most_steps = karras_grid(grid_points, sigma_min, sigma_max), most_steps
        self.lr, self.target_ema, self.ema = lr, target_ema, ema
        self.optimizer = torch.optim.RAdam(student.parameters(), lr=lr)
        self.last_weight = student.last_layer.weight
        self.steps = 0

    def draw_steps(self, generator):
        """k with P(k) ~ k, for the whole batch."""
        weights = torch.arange(1.0, self.most_steps + 1, device=generator.device)
        return 1 + int(torch.multinomial(weights, 1, generator=generator))

    def draw_times(self, batch, k, generator):
        """t, u = k grid points below it, and s at u or below, for each sample: the path (k + 1, batch) from t to u, and s."""
        last, place = len(self.grid) - 1, generator.device
        t = torch.randint(0, last - k + 1, (batch,), generator=generator, device=place)
        s = t + k + (torch.rand(batch, generator=generator, device=place) * (last - k - t + 1)).long()
        grid = self.grid.to(place)
        return grid[t + torch.arange(k + 1, device=place)[:, None]].float(), grid[s].float()

    def draw_sigma(self, batch, generator):
        """Half log-normal, half uniform in the Karras index over the upper 0.7."""
        half, place = batch // 2, generator.device
        low = (-1.2 + 1.2 * torch.randn(half, generator=generator, device=place)).exp()
        xi = 0.7 * torch.rand(batch - half, generator=generator, device=place)
        top, bottom = self.sigma_max ** (1 / 7), self.sigma_min ** (1 / 7)
        return torch.cat([low, (top + xi * (bottom - top)) ** 7])

    def estimate(self, x_t, t, s, labels):
        """G_target(G_student(x_t, t, s), s, sigma_min): the gradient goes through the outer network's input."""
        middle = jump(self.student, x_t, t, s, labels, self.sigma_data)
        return jump(self.target, middle, s, torch.full_like(s, self.sigma_min), labels, self.sigma_data)

    @torch.no_grad()
    def matching_target(self, x_u, u, s, labels):
        """The same from where the teacher's walk arrived."""
        return self.estimate(x_u, u, s, labels)

    def matching(self, x0, noise, path, s, labels):
        """Soft consistency matching: a loss for each sample."""
        x_t = x0 + column(path[0], x0) * noise
        with torch.no_grad():
            x_u = heun_walk(self.teacher, x_t, path, labels, self.sigma_data)
        target = self.matching_target(x_u, path[-1], s, labels)
        return (self.estimate(x_t, path[0], s, labels) - target).square().flatten(1).mean(1)

    def score_matching(self, x0, noise, sigma, labels):
        """w*|x0 - g(x0 + sigma*noise, sigma, sigma)|^2: a loss for each sample."""
        x = x0 + column(sigma, x0) * noise
        error = (x0 - g(self.student, x, sigma, sigma, labels, self.sigma_data)).square().flatten(1).mean(1)
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2 * error

    def adaptive_weight(self, matching, denoising):
        """The ratio of the two losses' gradients at the last layer, in [0, 10^4]."""
        one, two = (torch.autograd.grad(loss, self.last_weight, retain_graph=True)[0] for loss in (matching, denoising))
        return (one.norm() / (two.norm() + 1e-4)).clamp(0, 1e4)

    def losses(self, x0, labels, noise, path, s, dsm_noise, sigma):
        """(the whole loss, matching's mean, the weight, score matching's mean), all scalars."""
        matching = self.matching(x0, noise, path, s, labels).mean()
        denoising = self.score_matching(x0, dsm_noise, sigma, labels).mean()
        weight = self.adaptive_weight(matching, denoising)
        return matching + weight * denoising, matching, weight, denoising

    def update(self, loss):
        """One step of the optimiser and of both averages."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        ema = min(self.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for decay, average in ((self.target_ema, self.target), (ema, self.average)):
                for kept, now in zip(average.parameters(), self.student.parameters(), strict=True):
                    kept.mul_(decay).add_(now, alpha=1 - decay)
        self.steps += 1

    def step(self, x0, labels, generator, k=None):
        """One training step on a batch, with k solver steps, or as many as are drawn. generator: of the device of x0. Returns how
        often the teacher was evaluated on each sample."""
        k = self.draw_steps(generator) if k is None else k
        path, s = self.draw_times(len(x0), k, generator)
        noise, dsm_noise = torch.randn(2, *x0.shape, generator=generator, device=x0.device)
        sigma = self.draw_sigma(len(x0), generator)
        self.update(self.losses(x0, labels, noise, path, s, dsm_noise, sigma)[0])
        return 2 * k
