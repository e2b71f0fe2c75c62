# R with nlme and boot: the values that test_stats.py, test_inference.py and test_factors.py hold ours against.
# Rscript tests/unit/report/reference.R; all agree under R 4.2.2, nlme 3.1-162, boot 1.3-28.1.
options(digits=10)
print(R.version.string)
d <- with(sleep, extra[group==1]-extra[group==2])
t <- t.test(d); print(c(t$statistic, t$p.value, t$conf.int))
print(shapiro.test(d))
n<-10; dz<-mean(d)/sd(d); df<-n-1
J<-exp(lgamma(df/2)-log(sqrt(df/2))-lgamma((df-1)/2)); print(c(dz=dz,g=J*dz))
for (m in c(0.5)) print(max(t.test(d,mu=-m,alternative="greater")$p.value, t.test(d,mu=m,alternative="less")$p.value))
print(summary(aov(yield ~ block + N*P*K, npk)))
library(nlme)
f <- lme(score ~ Machine, random=~1|Worker, data=Machines); print(summary(f)$tTable); print(VarCorr(f))
print(p.adjust(c(0.01,0.04,0.03,0.005),"holm"))
darwin <- c(49,-67,8,16,6,23,28,41,14,29,56,24,75,60,-48); print(t.test(darwin)$p.value)
s<-0; g<-as.matrix(expand.grid(rep(list(c(-1,1)),15))); print(mean(abs(g%*%abs(darwin))>=abs(sum(darwin))))
library(boot)
A <- c(48,36,20,29,42,42,20,42,22,41,45,14,6,0,33,28,34,4,32,24,47,41,24,26,30,41)
set.seed(1); b<-boot(A,function(x,i) mean((x[i]-mean(x[i]))^2),R=20000); print(boot.ci(b,conf=0.9,type="bca")$bca)
